"""`python -m trainer` of the stand-in: the attempt contract (events, exit codes, checkpoints) alone."""

import argparse
import hashlib
import json
import signal
import sys
import time
from pathlib import Path

import yaml

DEFAULTS = {
    "steps": 4,
    "step_s": 0.05,
    "fail_share": 0.0,
    "fail_at": 1,
    "cause": "trainer",
    "checkpoint_every": 2,
    "memory_bytes": 10**8,
    "loss": 1.0,  # of the first step
    "by_seed": {},  # a config's `seed` may choose another behaviour: one release, many requests
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--resume", default="never")
    options = parser.parse_args()
    behaviour = {**DEFAULTS, **json.loads((Path(__file__).parent / "behaviour.json").read_text())}
    seed = yaml.safe_load(options.config.read_text()).get("seed")
    behaviour.update(behaviour["by_seed"].get(str(seed), {}))
    out = options.output_dir
    out.mkdir(parents=True, exist_ok=True)
    events = (out / "events.jsonl").open("a", buffering=1)

    def tell(event: str, **facts: object) -> None:
        events.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")

    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    begin = 0
    if options.resume != "never":
        begin = int(json.loads((Path(options.resume) / "state.json").read_text())["step"])
    coin = int.from_bytes(hashlib.sha256(out.name.encode()).digest()[:8], "big") / 2**64
    steps = int(behaviour["steps"])
    tell("start", run=out.name, kind="images", steps=steps, resumed_from_step=begin, package=__file__)
    for step in range(begin + 1, steps + 1):
        if step == behaviour["fail_at"] and coin < behaviour["fail_share"]:
            tell(
                "failure",
                cause=behaviour["cause"],
                type="RuntimeError",
                message="stub failure",
                hint="",
                step=step,
            )
            sys.stderr.write("stub failure\n")
            return 3 if behaviour["cause"] == "user" else 1
        time.sleep(float(behaviour["step_s"]))
        tell(
            "step",
            step=step,
            steps=steps,
            loss=behaviour["loss"] / step,
            lr=1e-4,
            step_s=behaviour["step_s"],
            memory_bytes=behaviour["memory_bytes"],
        )
        if step % int(behaviour["checkpoint_every"]) == 0 or stop:
            folder = out / "checkpoints" / f"step-{step:06d}"
            folder.mkdir(parents=True)
            (folder / "state.json").write_text(json.dumps({"step": step}))
            tell("checkpoint", step=step, path=str(folder.relative_to(out)))
        if stop:
            tell("failure", cause="resumable", type="SystemExit", message="stopped", hint="", step=step)
            return 75
    (out / "adapter.safetensors").write_bytes(b"stub")
    digest = hashlib.sha256(b"stub").hexdigest()
    tell(
        "result", step=steps, loss=None, files=[{"path": "adapter.safetensors", "sha256": digest, "size": 4}]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
