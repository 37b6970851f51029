"""Routes a second on one core, and how well the shares hold: `python -m benchmarks.routing`.

Target: 50,000 routes a second; every share within 1 % over 100,000 ids, the canary's within each cloud too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from typing import Any

from lora_ops.gates.counts import Metric
from lora_ops.gates.verdict import GateSpec
from lora_ops.ids import new_id
from lora_ops.rollout import apply
from lora_ops.routing import Fleet, route
from lora_ops.state import AppState, Policy, Track

NOW = 1_700_000_000.0
TARGET = 50_000


def mid_canary(clouds: int, weight: int) -> AppState:
    """A platform whose clouds all canary a release at `weight` percent."""
    names = [f"cloud-{number}" for number in range(clouds)]
    policy = Policy(
        waves=(tuple(names),),
        plans=dict.fromkeys(names, (weight,)),
        gates=(GateSpec(metric=Metric.ERROR_RATE, limit=0.05),),
    ).model_dump(mode="json")
    of = {"rollout": "roll-1", "epoch": 0}
    events: list[tuple[str, dict[str, Any]]] = [
        *[
            ("cloud-set", {"name": name, "stable": "sha256:old", "share": 1.0 + n % 2})
            for n, name in enumerate(names)
        ],
        ("rollout-started", {"id": "roll-1", "source": {"path": "."}, "policy": policy}),
        ("validated", of),
        ("built", {**of, "release": "sha256:new"}),
        ("self-checked", of),
        ("distributed", {**of, "clouds": dict.fromkeys(names, "sha256:new")}),
        ("step-started", {**of, "wave": 0, "step": 0}),
    ]
    state = AppState(app="benchmark")
    for kind, data in events:
        state = apply(state, kind, data, state.seq + 1)
    return state


def measure(clouds: int, weight: int, ids: list[str], rounds: int) -> dict[str, float | int]:
    """The median round's routes a second, and the greatest deviation of a share."""
    state = mid_canary(clouds, weight)
    fleet = Fleet.of(state, {}, NOW + 60)
    seconds = []
    for _ in range(rounds):
        began = time.process_time()  # this core's own time, whatever else runs beside it
        for each in ids:
            route(each, fleet, NOW)
        seconds.append(time.process_time() - began)
    found = [route(each, fleet, NOW) for each in ids]
    all_of = Counter(each.cloud for each in found)
    canary = Counter(each.cloud for each in found if each.track is Track.CANARY)
    total = sum(cloud.share for cloud in state.clouds.values())
    return {
        "clouds": clouds,
        "canary_percent": weight,
        "routes": len(ids),
        "routes_per_s": round(len(ids) / statistics.median(seconds)),
        "worst_cloud_share_error": max(
            abs(all_of[name] / len(ids) - cloud.share / total) for name, cloud in state.clouds.items()
        ),
        "worst_canary_share_error": max(
            abs(canary[name] / all_of[name] - weight / 100) for name in state.clouds
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ids = [new_id("req", NOW + n * 0.01, n * 2654435761) for n in range(options.routes)]
    rows = [measure(clouds, weight, ids, options.rounds) for clouds in (1, 2, 3, 5) for weight in (10, 50)]
    if options.json:
        print(json.dumps({"target_routes_per_s": TARGET, "rows": rows}))
        return 0
    print("clouds  canary   routes/s  cloud share off by  canary share off by")
    for row in rows:
        print(
            f"{row['clouds']:6}  {row['canary_percent']:4} %  {row['routes_per_s']:9,}"
            f"  {row['worst_cloud_share_error']:16.2%}  {row['worst_canary_share_error']:17.2%}"
        )
    print(f"target: {TARGET:,} routes/s on one core, shares within 1 %")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
