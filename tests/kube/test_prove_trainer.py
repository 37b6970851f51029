"""The real trainer in pods: a small Stable Diffusion, trained on two pictures. For `make prove-kube`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lora_ops.spec import ProbeSpec
from lora_ops.state import Phase
from tests.flows.site import eventually
from tests.kube.site import KubeSite
from tests.stub.make import make_stub_config

pytestmark = pytest.mark.prove

AWS = "aws-eu-central-1"


@pytest.fixture
def real_config() -> Iterator[Path]:
    """Its base model lies in a folder that pods have at the same place, from their image."""
    from trainer.tiny import make_sd

    folder = Path(tempfile.mkdtemp(prefix="lora-ops-model-", dir="/var/tmp"))
    make_sd(folder / "sd")
    config = make_stub_config(folder / "cfg")
    keys = yaml.safe_load(config.read_text())
    keys |= {
        "base_model": str(folder / "sd"),
        "resolution": 32,
        "max_steps": 4,
        "lora_rank": 2,
        "tracker": {"wandb": "off"},
    }
    config.write_text(yaml.safe_dump(keys))
    yield config
    shutil.rmtree(folder)


def test_the_real_trainer_trains_in_a_pod_and_is_judged_there(kube: KubeSite, real_config: Path) -> None:
    """Its own image, its own self-check on the node, and a LoRA in the store; then the pointer goes back."""
    model = Path(yaml.safe_load(real_config.read_text())["base_model"])
    files = {str(path)[1:]: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    release = kube.layered(files)
    before = kube.platform.state().clouds[AWS].stable
    probes = ProbeSpec(config=str(real_config))
    rollout = kube.deploy(release, probes=probes, waves=((AWS,),), hold=900.0)
    held = kube.in_phase(rollout, "holding", timeout_s=900)
    assert held.verified == {AWS: "verified"}
    try:
        answer = kube.api.post(
            "/requests",
            json={"config": real_config.read_text(), "cwd": "/", "cloud": AWS, "cloud_only": True},
        )
        assert answer.status_code == 201, answer.text
        request = str(answer.json()["id"])
        kube.result(request, 300)
        kube.all_succeeded([request])
        state = kube.platform.request(request)
        assert state.attempts[-1].digest == release
        names = {str(each["path"]) for each in state.result.files} if state.result else set()
        assert any(name.endswith(".safetensors") for name in names), names
    finally:
        kube.decide(rollout, "abort")
    assert kube.ended(rollout, 60).phase is Phase.ABORTED
    assert kube.platform.state().clouds[AWS].stable == before
    eventually(lambda: not kube.active_jobs() or None, "no Job is left", 120)
