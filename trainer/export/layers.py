"""The layers of a file from its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from trainer.errors import UserError
from trainer.export.keys import Place, coherent, plausible
from trainer.lora import Kind, Layer


def layers_of(
    tensors: Mapping[str, Tensor],
    parse: Callable[[str], Place | None],
    alpha_of: Callable[[str, str, int], float] | None = None,
    rank_of: Callable[[str], int] | None = None,
) -> dict[str, dict[str, Layer]]:
    """{component: {module: layer}}, modules sorted. `alpha_of` (component, module, rank) tells what the file
    itself holds no tensor for; unset: the rank, which is scale 1. `rank_of` a module tells what no tensor of
    a lokr of two whole matrices can; unset: its alpha, which is scale 1.

    Raises UserError that lists the keys of no module or kind known here, and the modules that lack a part."""
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    kinds: dict[tuple[str, str], Kind] = {}
    unknown = []
    for key, tensor in tensors.items():
        place = parse(key)
        if place is None or not plausible(place.part, tensor.shape):
            unknown.append(key)
            continue
        where = (place.component, place.module)
        grouped.setdefault(where, {})[place.part] = tensor.float()
        if place.kind is not None:
            kinds[where] = place.kind
    found: dict[str, dict[str, Layer]] = {}
    for component, module in sorted(grouped):
        parts = grouped[component, module]
        kind = kinds.get((component, module))
        alpha = float(parts.pop("alpha")) if "alpha" in parts else None
        if kind is None or not coherent(kind, {part: tensor.shape for part, tensor in parts.items()}):
            shapes = [f"{part} {tuple(tensor.shape)}" for part, tensor in sorted(parts.items())]
            unknown.append(f"{component}.{module} has only {', '.join(shapes) or 'an alpha'}")
            continue
        if "magnitude" in parts:
            parts["magnitude"] = parts["magnitude"].flatten()
        rank = _rank(kind, parts)
        if rank is None:
            rank = rank_of(module) if rank_of else max(1, round(alpha or 1.0))
            alpha = None if rank_of else float(rank)
        if alpha is None:
            alpha = alpha_of(component, module, rank) if alpha_of else float(rank)
        found.setdefault(component, {})[module] = Layer(kind, rank, alpha, parts)
    if unknown:
        raise UserError(
            f"{len(unknown)} keys are of no module, kind or shape that is known: "
            f"{', '.join(sorted(unknown)[:10])}{' ...' if len(unknown) > 10 else ''}.",
            "LoRA, LoCon, DoRA, LoHa and LoKr can be read; of Stable Diffusion 1.x, 2.x and XL, or in a peft "
            "folder.",
        )
    return found


def _rank(kind: Kind, parts: Mapping[str, Tensor]) -> int | None:
    """None for a lokr of two whole matrices."""
    if kind == "lora":
        return parts["down"].shape[0]
    return next((parts[part].shape[0] for part in ("w1_b", "w2_b") if part in parts), None)
