"""The platform that the tests of flows share: `lora-ops up` costs half a minute."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.flows.site import Site


@pytest.fixture(scope="session")
def running_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running platform. Every process of it is gone afterwards, whatever the tests did."""
    made = Site(tmp_path_factory.mktemp("site"))
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        made.up()
        yield made
    finally:
        left = made.stop()
        signal.signal(signal.SIGTERM, before)
    assert not left, left


def _terminated(number: int, frame: FrameType | None) -> None:
    """A CI that ends the run must not leave the platform behind."""
    pytest.exit("terminated", returncode=128 + number)


@pytest.fixture
def site(running_site: Site) -> Iterator[Site]:
    """The platform with no rollout under way or queued: a test that fails leaves none to the next one."""
    yield running_site
    running_site.calm()
