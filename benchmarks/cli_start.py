"""How long the command line takes to start, as a whole process: `python -m benchmarks.cli_start`.

Target: `lora-ops --help` takes at most 10 times as long as `python -c pass`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

TARGET = 10.0
ROOT = Path(__file__).resolve().parent.parent
# What the console script does.
SCRIPT = "import re, sys; from cli.main import main; sys.exit(main())"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "lora-ops --help": ["-c", SCRIPT, "--help"],
    "lora-ops rollout --help": ["-c", SCRIPT, "rollout", "--help"],
    "lora-ops deploy --help": ["-c", SCRIPT, "deploy", "--help"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # Side by side, so that a busy machine slows all of them alike; the first round warms the disk's cache.
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(options.runs + 1)]
    medians = {name: statistics.median(taken[name] for taken in rounds[1:]) for name in COMMANDS}
    base = medians["python -c pass"]
    ratios = {name: median / base for name, median in medians.items()}
    if options.json:
        print(json.dumps({"seconds": medians, "ratio": ratios, "target": TARGET}, indent=2))
    else:
        print(f"{'':<26}{'median':>10}{'times':>8}")
        for name, median in medians.items():
            print(f"{name:<26}{median * 1000:7.1f} ms{ratios[name]:8.1f}")
        print(f"target: `lora-ops --help` at most {TARGET:.0f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
