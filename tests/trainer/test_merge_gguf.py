"""The merged folder and the GGUF file: loaded again by transformers, they answer as base and adapter did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.language import Make, family_on, stir, tiny
from trainer.errors import ConfigError
from trainer.export import gguf_file
from trainer.models.base import RunFacts
from trainer.models.llm import CausalLM

IDS = torch.tensor([[1, 9, 40, 77, 12, 3, 200, 5]])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


def trained(family: CausalLM) -> Tensor:
    """What the adapted model says, by its own attention."""
    with family._resting(), family._own_masks():
        return logits(family.model)


def load(folder: Path, **how: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, **how)


@pytest.mark.parametrize(
    "changes",
    [{}, {"dora": True}, {"rslora": True, "lora_alpha": 3}, {"init": "pissa"}, {"adapter": "loha"}],
    ids=str,
)
def test_the_merged_folder_says_what_base_and_adapter_say(
    changes: dict[str, Any], text_config: Make, tmp_path: Path
) -> None:
    family = family_on(text_config(merge=True, **changes))
    stir(family)
    files = family.export(tmp_path / "out", RunFacts())
    merged = tmp_path / "out" / "merged"
    assert merged / "model.safetensors" in files
    assert merged / "tokenizer.json" in files
    torch.testing.assert_close(logits(load(merged)), trained(family), rtol=1e-4, atol=1e-4)
    assert not (
        logits(load(merged)) - logits(load(Path(family.config.base_model)))
    ).abs().max() < 1e-2 or changes.get("adapter")
    before = {file.name: file.read_bytes() for file in merged.iterdir()}
    family.export(tmp_path / "out", RunFacts())
    assert {file.name: file.read_bytes() for file in merged.iterdir()} == before
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_bf16_base_is_merged_in_bf16_after_float32_sums(
    text_config: Make, tiny_lm: Path, tmp_path: Path
) -> None:
    base = tmp_path / "bf16"
    model = load(tiny_lm, dtype=torch.bfloat16)
    model.save_pretrained(base)
    for file in tiny_lm.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            (base / file.name).write_bytes(file.read_bytes())
    family = family_on(text_config(base_model=base, merge=True))
    stir(family)
    family.export(tmp_path / "out", RunFacts())
    merged = load(tmp_path / "out" / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(logits(merged.float()), trained(family), rtol=0.1, atol=0.2)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(("how", "tolerance"), [("f16", 0.02), ("q8_0", 0.3)])
def test_the_gguf_loads_again_with_the_same_logits(
    kind: str,
    how: str,
    tolerance: float,
    trainer_home: Path,
    tiny_lm: Path,
    text_config: Make,
    tmp_path: Path,
) -> None:
    # GGUF has no sliding window, and transformers reads every Qwen 3 with heads of 128.
    changes = {"mistral": {"sliding_window": None}, "qwen3": {"head_dim": 128}}.get(kind, {})
    base = tiny(trainer_home / f"gguf-{kind}", tiny_lm, kind, **changes)
    family = family_on(text_config(base_model=base, gguf=how))
    stir(family)
    files = family.export(tmp_path / "out", RunFacts())
    file = tmp_path / "out" / "gguf" / f"out.{how}.gguf"
    assert file in files
    again = load(file.parent, gguf_file=file.name)
    wanted = trained(family)
    assert float((logits(again) - wanted).abs().max()) < tolerance * float(wanted.std())
    first = file.read_bytes()
    family.export(tmp_path / "out", RunFacts())
    assert file.read_bytes() == first


def test_the_ggufs_tokenizer_is_the_models(text_config: Make, tmp_path: Path) -> None:
    from gguf import GGUFReader

    family = family_on(text_config(gguf="f16"))
    family.export(tmp_path / "out", RunFacts())
    fields = GGUFReader(str(tmp_path / "out" / "gguf" / "out.f16.gguf")).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    assert words == [
        word for word, _ in sorted(family.tokenizer.get_vocab().items(), key=lambda item: item[1])
    ]
    assert fields["tokenizer.ggml.token_type"].contents()[:4] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == family.tokenizer.eos_token_id
    assert fields["tokenizer.chat_template"].contents() == family.tokenizer.chat_template


def test_llama_3s_long_context_divides_the_frequencies_as_transformers_does() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=2048, num_attention_heads=32, rope_parameters=rope, max_position_embeddings=131072
    )
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = gguf_file.rope_factors(config.to_dict())
    assert factors is not None
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2).double() / 64)
    torch.testing.assert_close((plain / factors).float(), wanted)
    assert set(factors.tolist()) >= {1.0, 32.0}
    assert gguf_file.rope_factors({"rope_parameters": {"rope_type": "default"}}) is None


def test_a_model_that_gguf_cannot_hold_is_refused_before_anything_is_trained(
    text_config: Make, trainer_home: Path, tiny_lm: Path, tmp_path: Path
) -> None:
    base = tiny(trainer_home / "tiny-gpt2", tiny_lm, "gpt2")
    with pytest.raises(ConfigError, match=r"type gpt2 cannot be written"):
        family_on(text_config(base_model=base, gguf="f16"), build=False)
    odd = tiny(tmp_path / "odd", tiny_lm, "llama")
    described = json.loads((odd / "tokenizer.json").read_text())
    described["pre_tokenizer"] = {"type": "Whitespace"}
    (odd / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="Whitespace"):
        family_on(text_config(base_model=odd, gguf="f16"), build=False)


def test_an_adapter_on_a_tied_output_layer_is_not_merged(text_config: Make) -> None:
    with pytest.raises(ConfigError, match="tied"):
        family_on(text_config(target_modules=["q_proj", "lm_head"], merge=True))
