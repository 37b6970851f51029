"""Real clusters: these tests run when KUBECONFIG names them, and take one platform over all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from lora_ops.cloud_spec import ImageSpec
from tests.flows.site import eventually, free_port
from tests.kube.regions import BASE, REPOSITORY, Region
from tests.kube.regions import regions as all_regions
from tests.kube.site import KubeSite, moto
from tests.stub.make import REPO


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name != "kube":
            continue
        if not os.environ.get("KUBECONFIG"):
            item.add_marker(pytest.mark.skip(reason="KUBECONFIG names no clusters"))
        elif item.get_closest_marker("prove") and not os.environ.get("LORA_OPS_PROVE"):
            item.add_marker(pytest.mark.skip(reason="`make prove-kube` runs it"))


@pytest.fixture(scope="session")
def regions() -> list[Region]:
    return all_regions()


@pytest.fixture(scope="session")
def real_image() -> str:
    """The digest of this checkout's image, built and pushed; or of one that has its packages."""
    if named := os.environ.get("LORA_OPS_KUBE_IMAGE"):
        return named
    from tasks.images import Registries, build_and_push

    image = ImageSpec(repository=REPOSITORY, base=BASE)
    return build_and_push(REPO, None, image, Registries(), print).digest


@pytest.fixture(scope="session")
def running_kube(
    tmp_path_factory: pytest.TempPathFactory, regions: list[Region], real_image: str
) -> Iterator[KubeSite]:
    """A running platform. Every process and namespace of it is gone afterwards."""
    folder = tmp_path_factory.mktemp("kube")
    before = dict(os.environ)
    port = free_port()
    store = moto(port, folder / "store.log")
    made: KubeSite | None = None

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/", timeout=2).status_code < 500
        except httpx.HTTPError:
            return False

    try:
        eventually(lambda: answers() or None, "the store answers", 30)
        made = KubeSite(folder, regions, port, real_image)
        made.store_pid = store.pid
        made.up()
        yield made
    finally:
        left = made.stop() if made is not None else []
        os.killpg(store.pid, signal.SIGKILL)
        store.wait()
        os.environ.clear()
        os.environ.update(before)
    assert not left, left


@pytest.fixture
def kube(running_kube: KubeSite) -> Iterator[KubeSite]:
    """The platform with every region up and no rollout under way."""
    yield running_kube
    running_kube.calm()
    for region in running_kube.regions.values():
        if os.environ.get("LORA_OPS_KUBE_REGIONS"):
            region.do("thaw")
    eventually(lambda: all(running_kube.healthy().values()) or None, "every cloud is up again", 120)
