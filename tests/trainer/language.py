"""Tiny causal LMs of several architectures, and a family on one, for tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.cache import Cache
from trainer.config import config_from
from trainer.data import check_dataset
from trainer.models.base import Setup
from trainer.models.llm import CausalLM
from trainer.models.sniff import sniff

SIZES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def tiny(folder: Path, tokenizer_of: Path, kind: str, **changes: Any) -> Path:
    """A random model of `kind` with the tokenizer in the folder `tokenizer_of`, once."""
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(str(tokenizer_of), local_files_only=True))
    common = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if kind in ("gpt2", "bloom"):
        common = {
            key: common[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**common, **SIZES[kind], **changes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tokenizer_of.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder / file.name)
    return folder


def family_on(values: dict[str, Any], *, build: bool = True) -> CausalLM:
    """A family with its data, and its model with `build`."""
    config = config_from(values)
    base = sniff(config.base_model)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    setup = Setup(config, base, "sha256:0", Cache(config.cache_root), torch.device("cpu"), dtype)
    family = CausalLM(setup)
    report = check_dataset(config)
    report.raise_if_bad()
    family.prepare(report.items, report)
    if build:
        family.groups = family.build()  # type: ignore[attr-defined]
    return family


def rngs(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def gradients(family: CausalLM, batches: list[list[int]]) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients by name) of one step over the micro-batches, as the loop makes them."""
    parameters = family.groups[0].parameters  # type: ignore[attr-defined]
    for parameter in parameters.values():
        parameter.grad = None
    units = sum(family.units(batch) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = family.loss(batch, rngs(len(batch))) / units
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in parameters.items()}


def stir(family: CausalLM, seed: int = 0) -> None:
    """Give the adapter an effect: its `up` matrices begin as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(family.groups[0].parameters.items()):  # type: ignore[attr-defined]
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


Make = Callable[..., dict[str, Any]]
