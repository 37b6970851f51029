"""Whether a namespace's quotas and limits leave room for a cloud's attempts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_ops.cloud_spec import CloudSpec

_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip
_TRACKS = 2


def quantity(text: Any) -> float:
    """`500m`, `2`, `16Gi` as a number. ValueError for anything else."""
    words = str(text)
    number = words.rstrip("".join(_UNITS))
    unit = words[len(number) :]
    if unit and unit not in _UNITS:
        raise ValueError(f"`{text}` is not a quantity")
    return float(number) * _UNITS.get(unit, 1.0)


def too_small(cloud: CloudSpec, quotas: Sequence[Mapping[str, Any]]) -> Iterator[tuple[bool, str]]:
    """(whether not even one attempt fits, what is too small) for each hard limit that the cloud would hit.

    All slots of both tracks at once are `2 x size` attempts; what others use of the quota counts.
    """
    wanted = _wanted(cloud)
    for quota in quotas:
        name = (quota.get("metadata") or {}).get("name", "?")
        status = quota.get("status") or {}
        for resource, hard in (status.get("hard") or (quota.get("spec") or {}).get("hard") or {}).items():
            if resource not in wanted:
                continue
            one, limit = wanted[resource], quantity(hard)
            every = one * cloud.size * _TRACKS
            if one > limit:
                yield True, f"quota {name}: {resource} {hard} is less than one attempt takes"
            elif every > limit:
                slots = int(limit // one)
                yield (
                    False,
                    f"quota {name}: {resource} {hard} is enough for {slots} of {cloud.size * _TRACKS}",
                )


def outside(cloud: CloudSpec, ranges: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What an attempt asks for and a LimitRange of the namespace does not admit."""
    wanted = {key.removeprefix("requests."): value for key, value in _wanted(cloud).items()}
    for each in ranges:
        name = (each.get("metadata") or {}).get("name", "?")
        for limit in (each.get("spec") or {}).get("limits") or ():
            if limit.get("type") not in ("Container", "Pod"):
                continue
            for resource, most in (limit.get("max") or {}).items():
                if resource in wanted and wanted[resource] > quantity(most):
                    yield f"limit range {name}: at most {most} of {resource}"
            for resource, least in (limit.get("min") or {}).items():
                if resource in wanted and wanted[resource] < quantity(least):
                    yield f"limit range {name}: at least {least} of {resource}"


def _wanted(cloud: CloudSpec) -> dict[str, float]:
    """What one attempt takes, by the names that quotas use; requests equal limits."""
    asked = cloud.resources
    own = {"cpu": asked.cpu, "memory": asked.memory, "ephemeral-storage": asked.scratch}
    found = {"pods": 1.0, "count/pods": 1.0, "count/jobs.batch": 1.0}
    for key, text in own.items():
        found[key] = found[f"requests.{key}"] = found[f"limits.{key}"] = quantity(text)
    if asked.gpu:
        found[f"requests.{asked.gpu_resource}"] = found[f"limits.{asked.gpu_resource}"] = float(asked.gpu)
    return found
