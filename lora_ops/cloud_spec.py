"""`clouds:` and `image:` of lora-ops.yaml: where trainers run, and the image that holds them there."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from lora_ops import yaml_lines
from lora_ops.spec_types import Float, Int, Seconds, Section
from lora_ops.state import Plan

LOCAL: Literal["local"] = "local"
KUBERNETES: Literal["kubernetes"] = "kubernetes"
Provider = Literal["aws", "gcp", "azure", "generic"]

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[EPTGMk]|[EPTGMK]i)?")
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?"
_PATH = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_HOST}(/{_PATH})+")
_REGISTRY = re.compile(rf"{_HOST}(/{_PATH})*")


def _label(text: str) -> str:
    if not _DNS_LABEL.fullmatch(text):
        raise ValueError(f"`{text}` is not a Kubernetes name; write 1 to 63 of a-z, 0-9 and -")
    return text


def _quantity(value: Any) -> Any:
    """Kubernetes' quantities: `500m`, `2`, `16Gi`."""
    if isinstance(value, bool) or not _QUANTITY.fullmatch(str(value)):
        raise ValueError(f"`{value}` is not a quantity such as 500m, 2 or 16Gi")
    return str(value)


def _registry(text: str) -> str:
    if not _REGISTRY.fullmatch(text):
        raise ValueError(f"`{text}` is not a registry such as 123.dkr.ecr.eu-central-1.amazonaws.com/team")
    return text


def _repository(text: str) -> str:
    if not _REPOSITORY.fullmatch(text):
        raise ValueError(
            f"`{text}` is not a repository such as ghcr.io/team/lora-scripts; without a tag or a digest"
        )
    return text


Label = Annotated[str, AfterValidator(_label)]
Registry = Annotated[str, AfterValidator(_registry)]
Quantity = Annotated[str, BeforeValidator(_quantity)]


class ImageSpec(Section):
    """The trainer's image. `repository`: where builds are pushed and tags are looked up. `base`: the build
    argument BASE_IMAGE of deployments/Dockerfile."""

    repository: Annotated[str, AfterValidator(_repository)]
    base: str = "nvidia/cuda:12.8.1-runtime-ubuntu24.04"
    build_args: dict[str, str] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """The repository's last part: the image's name in every cloud's registry."""
        return self.repository.rpartition("/")[2]


class Resources(Section):
    """What one attempt asks for; requests equal limits. `gpu_resource`: the cluster's name of a GPU."""

    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    scratch: Quantity = "50Gi"
    shm: Quantity = "2Gi"
    gpu: Annotated[Int, Field(ge=0, le=64)] = 1
    gpu_resource: str = "nvidia.com/gpu"


class Toleration(Section):
    """As in a pod's spec."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class CloudSpec(Section):
    """One cloud. The keys after `env` are those of kind `kubernetes`."""

    kind: Literal["local", "kubernetes"] = LOCAL
    size: Annotated[Int, Field(ge=1, le=1000)] = 1
    share: Annotated[Float, Field(ge=0)] = 1.0
    steps: Plan | None = None
    env: dict[str, str] = Field(default_factory=dict)

    provider: Provider = "generic"
    context: str | None = None
    namespace: Label = "lora-ops"
    registry: Registry | None = None
    pull_secret: Label | None = None
    service_account: Label = "lora-ops-trainer"
    env_from: tuple[Label, ...] = ()
    volume_claim: Label | None = None
    volume_path: str = "/data"
    prefect_api_url: str | None = None
    resources: Resources = Resources()
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    deadline: Seconds = 86_400.0
    grace: Seconds = 120.0
    ttl: Seconds = 3600.0

    @property
    def on_kubernetes(self) -> bool:
        return self.kind == KUBERNETES

    @field_validator("volume_path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        if not path.startswith("/") or path in ("/", "/tmp", "/scratch", "/dev/shm"):
            raise ValueError("an absolute path of its own, such as /data")
        return path

    @model_validator(mode="after")
    def _fits_kind(self) -> CloudSpec:
        if self.kind == KUBERNETES:
            if not self.context:
                raise yaml_lines.Wrong(
                    "name a context of your kubeconfig (`kubectl config get-contexts`)", "context"
                )
            return self
        common = {"kind", "size", "share", "steps", "env"}
        if foreign := sorted(self.model_fields_set - common):
            raise yaml_lines.Wrong("that is a key of `kind: kubernetes`", foreign[0])
        return self

    def image(self, repository: str, digest: str) -> str:
        """The reference by which this cloud pulls a release. `repository`: the spec's `image.repository`."""
        where = f"{self.registry}/{repository.rpartition('/')[2]}" if self.registry else repository
        return f"{where}@{digest}"
