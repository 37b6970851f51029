"""The platform that the tests of flows share: `lora-ops up` costs half a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flows.site import Site


@pytest.fixture(scope="session")
def running_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running platform. Every process of it is gone afterwards, whatever the tests did."""
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.up()
        yield made
    finally:
        left = made.stop()
    assert not left, left


@pytest.fixture
def site(running_site: Site) -> Iterator[Site]:
    """The platform with no rollout under way or queued: a test that fails leaves none to the next one."""
    yield running_site
    running_site.calm()
