"""How long the trainer takes to its first step, as a ratio: `python -m benchmarks.trainer_start`.

A tiny Stable Diffusion from safetensors, everything cached. Target: at most 1.3 times an interpreter that
imports the same classes (UNet, PEFT's injection, torch) in the same lean way and does nothing. A plain import
of them is printed, too. Whole processes, side by side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from PIL import Image

TARGET = 1.3
ROOT = Path(__file__).resolve().parent.parent
CLASSES = """
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
"""
LEAN = f"""
from trainer.fast_imports import lean_imports, own_process
own_process()
with lean_imports():
    {CLASSES.strip().replace(chr(10), chr(10) + "    ")}
"""
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def imports(code: str) -> float:
    """Seconds until the classes are there, from the start of the process."""
    began = time.time()
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport os, time\nprint(time.time(), flush=True)\nos._exit(0)"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return float(ended) - began


def first_step(config: Path, output: Path) -> float:
    """Seconds from the start of the process until the event of the first step."""
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "trainer", "--config", str(config), "--output-dir", str(output)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    return float(next(event["time"] for event in events if event["event"] == "step")) - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        code = (
            f"from pathlib import Path; from trainer.tiny import make_sd; make_sd(Path({str(root / 'sd')!r}))"
        )
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=True
        )
        (root / "pictures").mkdir()
        for number in range(4):
            Image.new("RGB", (64, 64), (60 * number, 80, 20)).save(root / "pictures" / f"{number}.png")
            (root / "pictures" / f"{number}.txt").write_text(f"picture {number}")
        config = {
            "base_model": str(root / "sd"),
            "train_data_dir": str(root / "pictures"),
            "output_dir": str(root / "out"),
            "cache_dir": str(root / "cache"),
            "resolution": 64,
            "max_steps": 1,
            "resume": "never",
            "tracker": {"wandb": "off"},
        }
        (root / "config.yaml").write_text(yaml.safe_dump(config))
        taken: dict[str, list[float]] = {"import": [], "plain import": [], "first step": []}
        for number in range(options.runs + 1):  # the first round fills the caches
            taken["import"].append(imports(LEAN))
            taken["plain import"].append(imports(CLASSES))
            taken["first step"].append(first_step(root / "config.yaml", root / f"run{number}"))
    medians = {what: statistics.median(seconds[1:]) for what, seconds in taken.items()}
    ratio = medians["first step"] / medians["import"]
    if options.json:
        print(json.dumps({"seconds": medians, "ratio": ratio, "target": TARGET}))
    else:
        for what, seconds in medians.items():
            print(f"{what:<14} {seconds:6.2f} s  {seconds / medians['import']:5.2f}")
        print(f"first step / import: {ratio:.2f} (target: at most {TARGET})")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
