"""What goes wrong with a LoRA file in other people's programs."""

from __future__ import annotations

from trainer.export.keys import by_input
from trainer.export.tell import Told

_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl"}


def warnings_of(told: Told) -> list[str]:
    """One line each, with the remedy."""
    found = _of_all(told)
    if told.format == "kohya":
        found += _of_kohya(told)
    if told.format == "diffusers":
        found += _of_diffusers(told)
    return found


def _of_all(told: Told) -> list[str]:
    found = []
    if told.unknown:
        some = ", ".join(told.unknown[:3])
        found.append(
            f"{len(told.unknown)} keys are of no module that is known ({some}): nobody applies them."
        )
    if told.format != "peft" and any(
        component.startswith("text_encoder") and not _has_text_model(told, component)
        for component in told.shapes
    ):
        found.append(
            "The text encoder's names lack `text_model`: A1111 and ComfyUI ignore them. Convert the file."
        )
    return found


def _has_text_model(told: Told, component: str) -> bool:
    return all(m.startswith("text_model.") or m == "text_projection" for m in told.shapes[component])


def _of_kohya(told: Told) -> list[str]:
    found = []
    said = told.metadata.get("ss_base_model_version", "")
    if told.metadata and not said:
        found.append(
            "There is metadata but no ss_base_model_version: A1111 takes the file for SD 1.x and hides it "
            "from other models. Convert it to write the key."
        )
    elif said and told.family and not said.startswith(_VERSIONS[told.family]):
        found.append(
            f"ss_base_model_version says {said}, but the tensors are {told.family}'s: A1111 hides the file."
        )
    if told.family == "sdxl" and any("_down_blocks_" in key or "_up_blocks_" in key for key in told.bare):
        found.append("SDXL under diffusers' block names, which not every reader knows. Convert the file.")
    if told.family == "sd1" and any(key.startswith("lora_te1_") for key in told.bare):
        found.append("The text encoder of SD 1.x is called lora_te1: A1111 ignores it. Convert the file.")
    without = [m for c, modules in told.shapes.items() for m in modules if m not in told.alphas.get(c, {})]
    if without:
        found.append(f"{len(without)} modules have no alpha: they are applied at scale 1.")
    magnitudes = [p["magnitude"] for ms in told.shapes.values() for p in ms.values() if "magnitude" in p]
    if any(len(shape) == 1 for shape in magnitudes):
        found.append("dora_scale has one dimension: ComfyUI takes the wrong axis for it. Convert the file.")
    if any(by_input(shape) for shape in magnitudes):
        found.append("DoRA for each input: A1111 and ComfyUI apply it, diffusers drops dora_scale.")
    elif magnitudes:
        found.append(
            "DoRA for each output: diffusers drops dora_scale from this format (use its own file), A1111 "
            "expects one for each input and scrambles it, ComfyUI divides by the base weight's norm alone."
        )
    if told.kinds.keys() & {"loha", "lokr"}:
        found.append("diffusers cannot read LoHa and LoKr in this format; A1111 and ComfyUI can.")
    return found


def _of_diffusers(told: Told) -> list[str]:
    found = []
    if not told.alphas:
        found.append(
            "There is no lora_adapter_metadata: diffusers applies the file at scale 1, whatever was trained."
        )
    scales = {told.scale(c, m) for c, modules in told.shapes.items() for m in modules}
    if any(abs(scale - 1) > 1e-6 for scale in scales):
        found.append(
            f"ComfyUI reads no alpha from this format and applies it at scale 1 instead of {max(scales):g}. "
            "Give it the kohya file."
        )
    return found
