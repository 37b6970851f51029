"""The attempt contract: what readers of another version tolerate, and what they must not lose."""

import json
import math

import pytest

from lora_ops.errors import JournalError
from lora_ops.gates.samples import COUNTED, NEVER_COUNTED, Cause, Outcome, Sample, read_sample, read_start

FACTS = {"request": "r1", "attempt": 1, "cloud": "east", "track": "canary", "digest": "sha256:a"}


def test_round_trip_through_json() -> None:
    sample = Sample(
        **FACTS, probe="roll/1", cause="out_of_memory", step=3, steps=40, step_seconds=[0.5, 0.25], loss=0.1
    )
    assert read_sample(sample.model_dump_json()) == sample
    start = read_start(json.dumps({**FACTS, "executor": "x"}).encode())
    assert read_start(start.model_dump_json()) == start
    assert start.key == ("r1", 1)


def test_a_diverged_loss_survives_strict_json() -> None:
    text = Sample(**FACTS, loss=math.nan).model_dump_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    loss = read_sample(text).loss
    assert loss is not None
    assert math.isnan(loss)


def test_unknown_keys_and_newer_versions_are_read() -> None:
    sample = read_sample({**FACTS, "schema_version": 7, "colour": "blue", "at_horizon": True})
    assert sample.schema_version == 7
    assert sample.outcome is Outcome.GOOD


def test_an_unknown_cause_counts_as_bad() -> None:
    sample = read_sample({**FACTS, "cause": "melted"})
    assert sample.cause is Cause.UNKNOWN
    assert sample.outcome is Outcome.BAD
    assert read_sample({**FACTS, "cause": 3}).cause is Cause.UNKNOWN


def test_every_cause_is_counted_or_never_counted() -> None:
    assert set(Cause) == COUNTED | NEVER_COUNTED
    bad = {"trainer_error", "out_of_memory", "exit_before_contact", "image_pull", "no_heartbeat", "unknown"}
    assert bad == COUNTED
    assert len(NEVER_COUNTED) == 13
    assert all(Sample(**FACTS, cause=c).outcome is Outcome.BAD for c in COUNTED)
    assert all(Sample(**FACTS, cause=c).outcome is Outcome.UNCOUNTED for c in NEVER_COUNTED)


def test_good_needs_the_horizon_or_the_end() -> None:
    assert Sample(**FACTS).outcome is Outcome.RUNNING
    assert Sample(**FACTS, ended=True).outcome is Outcome.GOOD
    assert Sample(**FACTS, ended=True, cause="trainer_error").outcome is Outcome.BAD


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[]", "document: "),
        (json.dumps({**FACTS, "attempt": -1}), "attempt: "),
        (json.dumps({"request": "r1"}), "digest: "),
    ],
)
def test_a_torn_document_is_named(raw: bytes | str, said: str) -> None:
    with pytest.raises(JournalError, match=r"rollouts/x/samples/1\.json is not a sample") as caught:
        read_sample(raw, "rollouts/x/samples/1.json")
    assert any(said in line for line in caught.value.details)
