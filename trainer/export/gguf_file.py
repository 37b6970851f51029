"""A merged Llama-like model as one GGUF file, as llama.cpp and the programs around it load it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import ConfigError, ModelError, TrainerError
from trainer.files import fsync_dir, json_object, whole_file

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model type and GGUF's name for it."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA3 % "{1,3}": "llama-bpe", _LLAMA3 % "": "qwen2"}
"""How a tokenizer splits words before merging, and llama.cpp's name for it."""


def check(base: Path, source: Path) -> None:
    """Raises ConfigError if the model folder `base` (made from the file `source` if that is a GGUF) cannot be
    written as GGUF, and ModelError if the package gguf is not there."""
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise ModelError(
            "`gguf` wants the package gguf, which is not installed.", "pip install gguf"
        ) from None
    config = _read(base / "config.json")
    kind = str(config.get("model_type"))
    if kind not in _ARCHITECTURES:
        raise ConfigError(
            [f"`gguf`: a model of type {kind} cannot be written, but {', '.join(_ARCHITECTURES)} can."],
            "Set gguf: off and merge: true, and convert the merged folder with llama.cpp's own script.",
        )
    rope = str(_rope(config).get("rope_type", "default"))
    if rope not in ("default", "llama3"):
        raise ConfigError([f"`gguf`: rotary embeddings of type {rope} cannot be written."], "Set gguf: off.")
    if source.suffix.lower() != ".gguf":
        _splitting(base)


def save(model: Any, tokenizer: Any, path: Path, kind: str, base: Path, source: Path) -> Path:
    """Write `model` (float32, on the CPU) as `path`, whole or not at all. `kind`: f16 or q8_0, for matrices;
    vectors stay float32. The vocabulary is that of `source` if that is a GGUF file, else `tokenizer`'s. The
    format has no place for a sliding window."""
    from gguf import GGUFWriter

    config = _read(base / "config.json") | model.config.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as made:
        writer = GGUFWriter(made, _ARCHITECTURES[str(config["model_type"])])
        _add_shape(writer, config, path.stem, kind)
        if source.suffix.lower() == ".gguf":
            _copy_vocabulary(writer, source, tokenizer)
        else:
            _add_vocabulary(writer, tokenizer, base, int(config["vocab_size"]))
        for name, data, quantised in _tensors(model, config, kind):
            writer.add_tensor(name, data, raw_dtype=quantised)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    fsync_dir(path.parent)
    return path


def _add_shape(writer: Any, config: Mapping[str, Any], name: str, kind: str) -> None:
    from gguf import LlamaFileType

    writer.add_name(name)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_head_count_kv(int(config["num_key_value_heads"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    size = _head_size(config)
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10000.0)))
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if kind == "f16" else LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)


def _tensors(model: Any, config: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Any, Any]]:
    """(GGUF's name, data, its number format) of every tensor."""
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quantize

    architecture = _ARCHITECTURES[str(config["model_type"])]
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    heads = {"q_proj": int(config["num_attention_heads"]), "k_proj": int(config["num_key_value_heads"])}
    if (factors := rope_factors(config)) is not None:
        yield "rope_freqs.weight", factors.numpy(), GGMLQuantizationType.F32
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise TrainerError(f"GGUF has no name for the tensor {name}.", "Set gguf: off.")
        part = name.split(".")[-2]
        data = tensor.detach().float()
        if architecture == "llama" and part in heads:
            data = _paired(data, heads[part])
        wanted = GGMLQuantizationType.F32
        if data.ndim > 1:
            small = kind == "q8_0" and data.shape[-1] % 32 == 0
            wanted = GGMLQuantizationType.Q8_0 if small else GGMLQuantizationType.F16
        yield new, quantize(np.ascontiguousarray(data.numpy()), wanted), wanted


def _paired(weight: Tensor, heads: int) -> Tensor:
    """The rows of each head in the order of llama.cpp's rotary embedding, which turns neighbours, where
    transformers' turns halves."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """By what each rotary frequency is divided, float32 (head size / 2,), for Llama 3's long contexts (the
    formula of its reference code); None where there is nothing to divide."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    size = _head_size(config)
    old = float(rope["original_max_position_embeddings"])
    low, high, factor = (float(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    frequencies = 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, size, 2).double() / size)
    waves = 2 * math.pi / frequencies
    smooth = (old / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = torch.where(waves < old / high, 1.0, torch.where(waves > old / low, factor, between))
    return found.float()


def _copy_vocabulary(writer: Any, source: Path, tokenizer: Any) -> None:
    from gguf import GGUFReader, GGUFValueType

    for name, field in GGUFReader(str(source)).fields.items():
        if name.startswith("tokenizer.") and name != "tokenizer.chat_template":
            inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _add_vocabulary(writer: Any, tokenizer: Any, base: Path, size: int) -> None:
    from gguf import TokenType

    added = tokenizer.added_tokens_decoder
    by_id = {number: word for word, number in tokenizer.get_vocab().items()}
    words, types = [], []
    for number in range(size):
        token = added.get(number)
        words.append(by_id.get(number, f"[PAD{number}]"))
        if number not in by_id:
            types.append(TokenType.UNUSED)
        elif token is None:
            types.append(TokenType.NORMAL)
        else:
            types.append(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    merges = [
        pair if isinstance(pair, str) else " ".join(pair)
        for pair in _read(base / "tokenizer.json")["model"].get("merges", [])
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(base))
    writer.add_token_list(words)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(int(number))
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _splitting(base: Path) -> str:
    """llama.cpp's name for how the tokenizer of `base` splits words. Raises ConfigError for other kinds."""
    described = _read(base / "tokenizer.json")
    steps = described.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [str(step.get("type")) for step in steps]
    if described.get("model", {}).get("type") == "BPE" and not described["model"].get("byte_fallback"):
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and (
            name := _SPLITS.get(steps[0].get("pattern", {}).get("Regex"))
        ):
            return name
    raise ConfigError(
        [f"`gguf`: the tokenizer of {base} ({', '.join(kinds) or 'none'}) cannot be written."],
        "Set gguf: off and merge: true, and convert the merged folder with llama.cpp's own script.",
    )


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's settings, as transformers 5 and as 4 writes them."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_type", found.get("type", "default"))
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return found


def _read(path: Path) -> dict[str, Any]:
    return json_object(path, ModelError, "Copy the whole model folder again.")
