"""What a module of Stable Diffusion is called in the two file formats.

transformers 5 flattened CLIPTextModel (`encoder.layers...`); A1111, ComfyUI and diffusers all expect
`text_model.encoder.layers...`, and the first two ignore anything else without a word.
"""

from __future__ import annotations

KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}


def classic(component: str, module: str) -> str:
    """The module's path as it was before transformers 5 (`text_model.` put back)."""
    if component == "text_encoder" and not module.startswith("text_model."):
        return f"text_model.{module}"
    return module


def kohya_name(component: str, module: str) -> str:
    """`lora_unet_down_blocks_0_...` or `lora_te_text_model_encoder_layers_...` (SD 1.5)."""
    return f"{KOHYA_PREFIX[component]}_{classic(component, module).replace('.', '_')}"
