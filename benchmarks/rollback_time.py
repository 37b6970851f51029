"""From the first failure of a broken release to its rollback: `python -m benchmarks.rollback_time`.

Rolls a release out again and again that fails half of its attempts, each by a coin of its own, through the
real platform: `lora-ops up`, Prefect's server, a worker, the deploy flow, `lora-ops deploy --canary`. Its
trainer is a stub that imports no torch. A user's request comes every few seconds and all of them go to the
canary, so that is how often a sample comes. Beside what is measured stands what the gates' own boundaries say
of such a release when each sample is looked at by itself, at once.

Targets: first failure to rollback under 90 s at the median; from the deciding sample at most 5 s; at most 5
of 100 pass their canary, and those are rolled back in the hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._platform import Running, platform
from benchmarks.gate_simulation import EXPECTED as TABLE
from lora_ops.gates.statistics import fail_boundary, pass_boundary
from tests.stub.make import make_stub_config, make_stub_source

BAD_SHARE, LIMIT, ALPHA, HARMFUL, BETA, TESTS = 0.5, 0.05, 0.01, 0.5, 0.05, 1
FIRST_FAILURE_S, DECIDING_S, PASSED_SHARE = 90, 5, 0.05
SIMULATED = 20_000
POLL_S = 0.5
PATIENCE_S = 900.0
OVER = ("rolled-back", "promoted", "aborted", "failed")
EXPOSED = ("canarying", "promoting", "holding")
RESULTS = ("succeeded", "failed", "cancelled", "abandoned")
BANDS = ((1, 2), (3, 5), (6, 10), (11, 15), (16, 25), (26, math.inf))
SPEC: dict[str, Any] = {
    "app": "rollback-time",
    "clouds": {"here": {"kind": "local", "size": 3}},
    "rollout": {
        "steps": [100],
        "gates": [{"metric": "error_rate", "limit": "5%"}],
        "harmful": "50%",
        "deadline": "10m",
        "hold": "10m",
    },
}


@dataclass(frozen=True)
class Measured:
    """One rollout. `samples`: those at its first verdict, which is a pass when it `passed_canary`."""

    id: str
    phase: str
    passed_canary: bool
    samples: int | None
    seconds_a_sample: float | None
    first_failure_to_rollback_s: float | None
    deciding_sample_to_rollback_s: float | None


class Simulated(NamedTuple):
    """One release. `samples`: those at the first verdict; `wait`: from the first bad one to the fail."""

    passed: bool
    samples: int
    wait: int


Say = Callable[[str], None]


# --- measuring ----------------------------------------------------------------------------------


def measure(
    rollouts: int, every_s: float, folder: Path, say: Say, results: list[Measured], ended: Counter[str]
) -> None:
    """Roll the bad release out `rollouts` times, one after the other. Fills `results`, and `ended` with how
    the requests ended. RuntimeError when the bad release became stable."""
    here = folder / "platform"
    make_stub_source(here)
    bad = make_stub_source(folder / "bad", fail_share=BAD_SHARE)
    config = make_stub_config(folder / "config")
    body = {"config": config.read_text(), "source": str(config), "cwd": str(config.parent)}
    with platform(here, SPEC, say) as running:
        for number in range(1, rollouts + 1):
            began = time.monotonic()
            result, requests = roll_out(running, bad, every_s, body)
            results.append(result)
            drain(running, requests, ended)
            say(f"{number}/{rollouts}  {_line(result)}  ({time.monotonic() - began:.0f} s in all)")
            if result.phase == "promoted":
                raise RuntimeError(f"rollout {result.id} was promoted: the bad release is stable now")


def roll_out(running: Running, bad: Path, every_s: float, body: dict[str, Any]) -> tuple[Measured, list[str]]:
    """One rollout from `deploy --canary` to its end, and the requests that came while it was exposed."""
    rollout = running.cli("deploy", "--canary", "--source", str(bad), "--dirty", "--yes")["id"]
    give_up = time.monotonic() + PATIENCE_S
    requests: list[str] = []
    due: float | None = None
    while True:
        document = running.get(f"/api/rollouts/{rollout}")
        if document["phase"] in OVER:
            looks = running.get(f"/api/rollouts/{rollout}/looks")["items"]
            return _measured(document, looks), requests
        now = time.monotonic()
        if now > give_up:
            raise RuntimeError(f"rollout {rollout} is still {document['phase']} after {PATIENCE_S:.0f} s")
        if document["phase"] in EXPOSED and now >= (due or now):
            requests.append(running.post("/api/requests", body)["id"])
            due = (due or now) + every_s
        time.sleep(POLL_S if due is None else min(POLL_S, max(0.05, due - time.monotonic())))


def drain(running: Running, requests: Sequence[str], ended: Counter[str]) -> None:
    """Count how the requests end (`open`: not in time): the next rollout starts on an idle platform."""
    give_up = time.monotonic() + PATIENCE_S
    for request in requests:
        while True:
            state = running.get(f"/api/requests/{request}")["state"]
            if state in RESULTS or time.monotonic() > give_up:
                ended[state if state in RESULTS else "open"] += 1
                break
            time.sleep(POLL_S)


def _measured(document: dict[str, Any], looks: Sequence[dict[str, Any]]) -> Measured:
    judged = next((look for look in looks if look["verdict"] != "inconclusive"), None)
    return Measured(
        id=document["id"],
        phase=document["phase"],
        passed_canary=any(cloud["promoted"] for cloud in document["clouds"].values()),
        samples=judged["results"][0]["n_pass"] if judged else None,
        seconds_a_sample=_pace(looks),
        first_failure_to_rollback_s=document["first_failure_to_rollback_s"],
        deciding_sample_to_rollback_s=document["deciding_sample_to_rollback_s"],
    )


def _pace(looks: Sequence[dict[str, Any]]) -> float | None:
    """Seconds from one sample to the next, as the looks saw them come; None with fewer than two."""
    seen: list[tuple[float, int]] = [
        (datetime.fromisoformat(look["time"]).timestamp(), look["results"][0]["n_pass"])
        for look in looks
        if look["results"][0]["n_pass"]
    ]
    if not seen or seen[-1][1] == seen[0][1]:
        return None
    return (seen[-1][0] - seen[0][0]) / (seen[-1][1] - seen[0][1])


# --- what the gates say -------------------------------------------------------------------------


def simulate(releases: int, seed: int) -> list[Simulated]:
    """Releases as bad as this one, with a look after each sample; one that passed goes on in its hold."""
    coin = random.Random(seed)
    return [_simulated(coin) for _ in range(releases)]


def _simulated(coin: random.Random) -> Simulated:
    n = bad = first = passed_at = 0
    while True:
        n += 1
        if coin.random() < BAD_SHARE:
            bad += 1
            first = first or n
        if bad >= _fails(n):
            return Simulated(passed_at > 0, passed_at or n, n - first)
        if not passed_at and bad <= _passes(n):
            passed_at = n


@cache
def _fails(n: int) -> float:
    found = fail_boundary(n, limit=LIMIT, alpha=ALPHA, tests=TESTS)
    return math.inf if found is None else found


@cache
def _passes(n: int) -> int:
    found = pass_boundary(n, harmful=HARMFUL, beta=BETA)
    return -1 if found is None else found


# --- telling ------------------------------------------------------------------------------------


def summary(results: Sequence[Measured], every_s: float, seed: int) -> dict[str, Any]:
    """Measured beside expected (median, 90th percentile, maximum), and the ratio of their medians."""
    expected = simulate(SIMULATED, seed)
    rows = {
        "first_failure_to_rollback_s": _row(
            [each.first_failure_to_rollback_s for each in results], [each.wait * every_s for each in expected]
        ),
        "deciding_sample_to_rollback_s": _row([each.deciding_sample_to_rollback_s for each in results]),
        "samples_to_verdict": _row(
            [each.samples for each in results], [float(each.samples) for each in expected]
        ),
        "seconds_a_sample": _row([each.seconds_a_sample for each in results], [every_s]),
    }
    rows["first_failure_to_rollback_s"]["target"] = f"under {FIRST_FAILURE_S} s at the median"
    rows["deciding_sample_to_rollback_s"]["target"] = f"at most {DECIDING_S} s"
    measured = [each.samples for each in results if each.samples is not None]
    wanted = [each.samples for each in expected]
    bands = [
        {
            "from": low,
            "to": None if high == math.inf else high,
            "measured": _share(measured, low, high),
            "expected": _share(wanted, low, high),
        }
        for low, high in BANDS
    ]
    return {
        "rows": rows,
        "samples_to_verdict": bands,
        "passed_canary": {
            "measured": sum(each.passed_canary for each in results),
            "of": len(results),
            "expected_share": sum(each.passed for each in expected) / len(expected),
            "target_share": PASSED_SHARE,
        },
        "phases": dict(Counter(each.phase for each in results)),
        "table_for_two_tests": TABLE[HARMFUL][BAD_SHARE]._asdict(),
    }


def _row(measured: Sequence[float | None], expected: Sequence[float] = ()) -> dict[str, Any]:
    found = _spread([each for each in measured if each is not None])
    wanted = _spread(expected)
    known = found["median"] is not None and wanted["median"]
    return {
        "measured": found,
        "expected": wanted,
        "ratio": found["median"] / wanted["median"] if known else None,
        "target": "",
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"median": None, "p90": None, "max": None}
    ordered = sorted(values)
    nearest_rank = math.ceil(0.9 * len(ordered)) - 1
    return {"median": statistics.median(ordered), "p90": ordered[nearest_rank], "max": ordered[-1]}


def _share(of: Sequence[int], low: float, high: float) -> float:
    return sum(low <= each <= high for each in of) / max(1, len(of))


def _line(result: Measured) -> str:
    where = "in the hold" if result.passed_canary else "in the canary"
    first, deciding = result.first_failure_to_rollback_s, result.deciding_sample_to_rollback_s
    return (
        f"{result.phase} {where}: verdict at sample {result.samples}, first failure {_cell(first)} s and"
        f" deciding sample {_cell(deciding)} s before it, one every {_cell(result.seconds_a_sample)} s"
    )


def _cell(value: float | None, width: int = 0, digits: int = 1) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"


def show(found: dict[str, Any], every_s: float, requests: Counter[str]) -> None:
    passed = found["passed_canary"]
    print(
        f"{passed['of']} rollouts of a release that fails {BAD_SHARE:.0%} of its attempts, a request every"
        f" {every_s:g} s; limit {LIMIT:.0%}, alpha {ALPHA:.0%},\nharmful {HARMFUL:.0%}, beta {BETA:.0%}, one"
        f" cloud, one gate (m = {TESTS}). Expected: {SIMULATED} simulated, a look at each sample.\n"
    )
    print(f"{'':<31}{'measured':>15}{'':9}{'expected':>15}{'':9}")
    heads = "".join(f"{name:>8}" for name in ("median", "p90", "max", "median", "p90", "max", "ratio"))
    print(f"{'':<31}{heads}  target")
    for name, row in found["rows"].items():
        cells = [row[side][key] for side in ("measured", "expected") for key in ("median", "p90", "max")]
        shown = "".join(_cell(cell, 8) for cell in cells) + _cell(row["ratio"], 8, 2)
        print(f"{name:<31}{shown}  {row['target']}".rstrip())
    print(f"\n{'samples to the verdict':<31}{'measured':>16}{'expected':>24}")
    for band in found["samples_to_verdict"]:
        name = f"{band['from']} and more" if band["to"] is None else f"{band['from']} to {band['to']}"
        print(f"  {name:<29}{band['measured']:>16.1%}{band['expected']:>24.1%}")
    share = passed["measured"] / max(1, passed["of"])
    print(
        f"{'passed the canary':<31}{share:>16.1%}{passed['expected_share']:>24.1%}"
        f"{'':10}at most {passed['target_share']:.0%}, rolled back in the hold"
    )
    table = found["table_for_two_tests"]
    print(
        f"  (the table of the design has m = 2: {table['fail']:.1%} fail, {table['passed']:.1%} pass,"
        f" {table['median']:.0f} samples, 90th percentile {table['p90']:.0f})"
    )
    told = ", ".join(f"{count} {phase}" for phase, count in found["phases"].items())
    ended = ", ".join(f"{count} {state}" for state, count in requests.items())
    print(f"rollouts: {told}; requests: {ended or 'none ended yet'}")
    pace = found["rows"]["seconds_a_sample"]["ratio"]
    if pace is not None and pace > 1.5:
        print(f"this machine was too busy: samples came {pace:.1f} times as far apart as the requests")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--every", type=float, default=3.0, help="seconds from request to request")
    parser.add_argument("--seed", type=int, default=1, help="of the simulation")
    parser.add_argument("--folder", type=Path, help="work in this new folder and keep it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rollouts < 1 or options.every <= 0:
        parser.error("--rollouts must be 1 or more and --every above 0")
    if options.folder and options.folder.exists():
        parser.error(f"{options.folder} exists: name a new folder")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    results: list[Measured] = []
    ended: Counter[str] = Counter()
    interrupted = False
    with _folder(options.folder) as folder:
        try:
            measure(options.rollouts, options.every, folder, say, results, ended)
        except KeyboardInterrupt:
            interrupted = True
            say(f"interrupted after {len(results)} of {options.rollouts} rollouts")
    if results:
        found = summary(results, options.every, options.seed)
        if options.json:
            rollouts = [asdict(each) for each in results]
            print(json.dumps({**found, "rollouts": rollouts, "requests": dict(ended)}, indent=2))
        else:
            show(found, options.every, ended)
    return 130 if interrupted else 0


@contextlib.contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True)
        yield wanted.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="rollback-time-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
