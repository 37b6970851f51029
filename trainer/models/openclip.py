"""open_clip's text transformer in the names of transformers' CLIPTextModel."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_WHOLE = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)$")


def from_openclip(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors of the first `layers` blocks (SD 2 leaves the last one out), without `text_model.`:
    in_proj (3d, d) split into q, k and v; text_projection transposed. Other keys are left out."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key in _WHOLE:
            found[_WHOLE[key]] = tensor
        elif key == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        elif (match := _BLOCK.match(key)) and int(match[1]) < layers:
            start, inner = f"encoder.layers.{match[1]}", match[2]
            if inner.startswith("attn.in_proj_"):
                end = inner.removeprefix("attn.in_proj_")
                for name, part in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{start}.self_attn.{name}_proj.{end}"] = part.clone()
            else:
                name, _, end = inner.rpartition(".")
                found[f"{start}.{_INNER[name]}.{end}"] = tensor
    return found
