"""What a release of a given true error rate ends in, beside the table of the design.

Simulates releases one sample at a time with a look after each: fail at E >= m/alpha against the limit (5 %,
alpha 1 %, m = 2), pass at E >= 1/beta against the harmful share (beta 5 %). Prints the share that fails and
passes and the samples it took, simulated beside expected, and exits 1 when they differ by more than the error
of two simulations of this size (the expected ones come from 20,000 releases too, printed to three digits).

    python -m benchmarks.gate_simulation [--releases 20000] [--seed 1] [--json]
"""

import argparse
import json
import sys
from typing import NamedTuple

import numpy as np

from lora_ops.gates.statistics import fail_boundary, pass_boundary

LIMIT, ALPHA, BETA, TESTS = 0.05, 0.01, 0.05, 2
MAX_SAMPLES = 1_500
CHUNK = 2_000


class Row(NamedTuple):
    """Share that failed and passed, then median and 90th percentile of the samples to the end."""

    fail: float
    passed: float
    median: float
    p90: float


EXPECTED = {
    0.50: {
        0.00: Row(0.000, 1.000, 7, 7),
        0.02: Row(0.000, 1.000, 7, 11),
        0.05: Row(0.001, 0.999, 7, 11),
        0.10: Row(0.019, 0.981, 11, 17),
        0.20: Row(0.236, 0.764, 14, 23),
        0.30: Row(0.635, 0.365, 13, 23),
        0.50: Row(0.978, 0.022, 7, 15),
        0.80: Row(1.000, 0.000, 3, 6),
    },
    0.30: {
        0.00: Row(0.000, 1.000, 13, 13),
        0.02: Row(0.000, 1.000, 13, 20),
        0.05: Row(0.002, 0.998, 13, 32),
        0.10: Row(0.049, 0.951, 26, 52),
        0.20: Row(0.686, 0.314, 32, 62),
        0.30: Row(0.974, 0.026, 18, 38),
        0.50: Row(1.000, 0.000, 7, 16),
        0.80: Row(1.000, 0.000, 3, 6),
    },
}


def boundaries(harmful: float) -> tuple[np.ndarray, np.ndarray]:
    """For n = 1, 2, ...: the smallest number of bad samples that fails, the largest that passes."""
    ns = range(1, MAX_SAMPLES + 1)
    fails = (fail_boundary(n, limit=LIMIT, alpha=ALPHA, tests=TESTS) for n in ns)
    passes = (pass_boundary(n, harmful=harmful, beta=BETA) for n in ns)
    return (
        np.array([MAX_SAMPLES + 1 if k is None else k for k in fails]),
        np.array([-1 if k is None else k for k in passes]),
    )


def simulate(p: float, fails: np.ndarray, passes: np.ndarray, releases: int, rng: np.random.Generator) -> Row:
    failed, ended = [], []
    for done in range(0, releases, CHUNK):
        draws = rng.random((min(CHUNK, releases - done), MAX_SAMPLES), dtype=np.float32) < p
        bad = np.cumsum(draws, axis=1, dtype=np.int32)
        over = (bad >= fails) | (bad <= passes)
        if not over.any(axis=1).all():
            raise SystemExit(
                f"a release at {p:.0%} is undecided after {MAX_SAMPLES} samples: raise MAX_SAMPLES"
            )
        at = over.argmax(axis=1)
        ended.append(at + 1)
        failed.append(bad[np.arange(len(bad)), at] >= fails[at])
    samples = np.concatenate(ended)
    share = float(np.concatenate(failed).mean())
    return Row(share, 1.0 - share, float(np.median(samples)), float(np.quantile(samples, 0.9)))


def differs(found: Row, expected: Row, releases: int) -> bool:
    """Shares: four standard errors of the difference of two simulations, and the table's rounding."""
    variance = expected.fail * (1 - expected.fail) + 1e-4
    allowed = 4 * (variance * (1 / releases + 1 / 20_000)) ** 0.5 + 5e-4
    wide = 0.1 * max(1.0, (20_000 / releases) ** 0.5)
    samples_off = any(abs(a - b) > max(1.0, wide * b) for a, b in zip(found[2:], expected[2:], strict=True))
    return abs(found.fail - expected.fail) > allowed or samples_off


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate the gates beside the table of the design.")
    parser.add_argument(
        "--releases", type=int, default=20_000, help="below 10,000 a row may differ by chance"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.releases < 1:
        parser.error("--releases must be 1 or more")
    rng = np.random.default_rng(options.seed)
    table = []
    for harmful, rows in EXPECTED.items():
        fails, passes = boundaries(harmful)
        for p, expected in rows.items():
            found = simulate(p, fails, passes, options.releases, rng)
            table.append((harmful, p, found, expected, differs(found, expected, options.releases)))
    wrong = sum(off for *_, off in table)
    if options.json:
        keys = ("harmful", "true_error_rate", "simulated", "expected", "differs")
        lines = [(h, p, a._asdict(), b._asdict(), bool(off)) for h, p, a, b, off in table]
        document = [dict(zip(keys, line, strict=True)) for line in lines]
        print(json.dumps({"releases": options.releases, "rows": document}, indent=2))
        return 1 if wrong else 0
    print(f"{options.releases} releases; limit {LIMIT:.0%}, alpha {ALPHA:.0%}, beta {BETA:.0%}, m = {TESTS}")
    print(f"{'harmful':>8} {'true':>6}   {'simulated: fail / pass, samples':<34} {'expected':<30}")
    for harmful, p, found, expected, off in table:
        shown = (f"{r.fail:.3f} / {r.passed:.3f}, {r.median:.0f} ({r.p90:.0f})" for r in (found, expected))
        line = "{:<34} {:<30}".format(*shown)
        print(f"{harmful:>8.0%} {p:>6.0%}   {line} {'DIFFERS' if off else ''}".rstrip())
    print("all within the error of the simulation" if not wrong else f"{wrong} rows differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
