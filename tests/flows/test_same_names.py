"""Names that stand twice because the second place must start fast or run alone: both say the same."""

from __future__ import annotations

from flows import attempt
from lora_ops import reconcile
from tasks import engine
from trainer.data import DATA_PATHS


def test_an_attempt_knows_the_datasets_keys() -> None:
    assert set(attempt.DATA_PATHS) == set(DATA_PATHS)


def test_the_engines_exit_code_is_what_the_reconciler_reads() -> None:
    assert engine.PREFECT_AWAY == reconcile.PREFECT_AWAY
