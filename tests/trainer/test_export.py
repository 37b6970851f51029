"""What is written loads elsewhere with the same effect, whatever alpha and rank are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer import LoRATrainer
from trainer.export.kohya import to_kohya
from trainer.export.names import classic, naming
from trainer.export.tensor_file import serialize
from trainer.lora import Adapter, Layer, Plan, extract, inject
from trainer.models.sd import TARGETS

Make = Callable[..., dict[str, Any]]


def trained(config: dict[str, Any]) -> LoRATrainer:
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    return trainer


def header(path: Path) -> tuple[dict[str, str], set[str]]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata()), set(file.keys())


@pytest.mark.parametrize(("alpha", "rank"), [(2.0, 2), (7.0, 2), (1.0, 4)])
def test_both_image_files_act_alike_through_diffusers_own_loader(
    images_config: Make, alpha: float, rank: int
) -> None:
    from diffusers import StableDiffusionPipeline

    config = images_config(lora_alpha=alpha, lora_rank=rank, max_steps=4, learning_rate=0.05)
    trainer = trained(config)
    unet: Any = trainer.family.unet  # type: ignore[union-attr]
    torch.manual_seed(0)
    inputs = (torch.randn(1, 4, 4, 4), torch.tensor([500]), torch.randn(1, 77, 32))

    def effect(model: Any) -> Tensor:
        with torch.no_grad():
            return model(*inputs).sample  # type: ignore[no-any-return]

    wanted = effect(unet.eval())
    out = config["output_dir"]
    pipe = StableDiffusionPipeline.from_pretrained(str(config["base_model"]), local_files_only=True)
    plain = effect(pipe.unet)
    assert (wanted - plain).abs().max() > 1e-3
    for name in ("pytorch_lora_weights.safetensors", f"{out.name}.safetensors"):
        pipe.load_lora_weights(str(out / name))
        layers = [m for m in pipe.unet.modules() if hasattr(m, "scaling") and hasattr(m, "lora_A")]
        assert len(layers) == len(extract(unet).layers)
        assert {s for layer in layers for s in layer.scaling.values()} == {alpha / rank}
        torch.testing.assert_close(effect(pipe.unet), wanted, rtol=1e-4, atol=1e-5)
        pipe.unload_lora_weights()
    torch.testing.assert_close(effect(pipe.unet), plain)


def test_the_metadata_that_other_tools_look_at(images_config: Make) -> None:
    config = images_config(lora_alpha=3, max_steps=1, trigger_word="zorv")
    trained(config)
    out = config["output_dir"]
    meta, keys = header(out / "style.safetensors")
    assert meta["ss_network_module"] == "networks.lora"
    assert (meta["ss_network_dim"], meta["ss_network_alpha"]) == ("2", "3.0")
    assert (meta["ss_base_model_version"], meta["ss_v2"], meta["ss_output_name"]) == (
        "sd_v1",
        "False",
        "style",
    )
    tags = json.loads(meta["ss_tag_frequency"])["style"]
    assert (tags["noise"], tags["zorv"]) == (5, 5), "A1111 offers these words"
    assert meta["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert len(meta["sshs_model_hash"]) == 64
    assert len(meta["sshs_legacy_hash"]) == 8
    assert all(key.startswith("lora_unet_") for key in keys)
    bases = {key.split(".")[0] for key in keys}
    assert {
        f"{base}.{end}" for base in bases for end in ("lora_down.weight", "lora_up.weight", "alpha")
    } == keys
    meta, keys = header(out / "pytorch_lora_weights.safetensors")
    described = json.loads(meta["lora_adapter_metadata"])
    assert (described["unet.r"], described["unet.lora_alpha"]) == (2, 3)
    assert all(key.startswith("unet.") for key in keys)


def test_sd15_has_kohyas_192_modules_and_names() -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from trainer.models.sd_parts import read_config
    from trainer.models.sd_single_file import CONFIGS

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_config(CONFIGS / "sd15" / "unet" / "config.json"))
        inject(unet, Plan(4, 4), TARGETS, 0)
    names = [
        n.removesuffix(".lora_A.default") for n, m in unet.named_modules() if n.endswith(".lora_A.default")
    ]
    assert len(names) == 192
    kohya = {naming("sd1").kohya("unet", name) for name in names}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in kohya
    assert "lora_unet_mid_block_attentions_0_proj_in" in kohya
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj" in kohya


def test_text_model_is_put_back_for_those_who_expect_it() -> None:
    flat, old = "encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.self_attn.q_proj"
    assert classic("text_encoder", flat) == classic("text_encoder", old) == old
    assert naming("sd1").kohya("text_encoder", flat) == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert classic("unet", flat) == flat


def test_the_language_adapter_loads_in_peft_with_the_same_effect(text_config: Make) -> None:
    import warnings

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = text_config(lora_alpha=6, max_steps=6)
    trainer = trained(config)
    model: Any = trainer.family.model  # type: ignore[union-attr]
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([[1, 20, 30, 40, 2]])
    with torch.no_grad():
        wanted = model.eval()(ids).logits
        base = AutoModelForCausalLM.from_pretrained(str(config["base_model"]), local_files_only=True)
        plain = base(ids).logits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            loaded = PeftModel.from_pretrained(base, str(config["output_dir"]))
        torch.testing.assert_close(loaded(ids).logits, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - plain).abs().max() > 1e-3
    described = json.loads((config["output_dir"] / "adapter_config.json").read_text())
    assert described["target_modules"] == sorted(described["target_modules"])
    assert (described["r"], described["lora_alpha"], described["task_type"]) == (2, 6, "CAUSAL_LM")
    assert not any("lm_head" in name for name in described["target_modules"])
    assert (described["bias"], described["peft_type"]) == ("none", "LORA")


def test_our_writer_is_read_by_safetensors_and_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6).view(2, 3),
        "a": torch.randn(3, 2).t(),
        "empty": torch.zeros(0, 4),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
    }
    data = serialize(tensors, {"z": "1", "ä": "ö"})
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    read = load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
    assert header(path)[0] == {"z": "1", "ä": "ö"}
    assert serialize(dict(reversed(list(tensors.items()))), {"ä": "ö", "z": "1"}) == data


def test_kohya_alpha_is_the_real_one() -> None:
    layer = Layer("lora", 2, 5.0, {"down": torch.ones(2, 3), "up": torch.ones(4, 2)})
    adapter = Adapter({"m.to_q": layer}, {})
    tensors = to_kohya("unet", adapter)
    assert float(tensors["lora_unet_m_to_q.alpha"]) == 5.0
    assert tensors["lora_unet_m_to_q.alpha"].shape == ()


def test_generate_answers_with_and_without_the_adapter(text_config: Make, tmp_path: Path) -> None:
    data = tmp_path / "one"
    data.mkdir()
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "zq"}]}
    (data / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = text_config(train_data_dir=data, max_steps=40, lora_rank=8, learning_rate=2e-2, batch_size=1)
    trained(config)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainer.generate",
            "--base-model",
            str(config["base_model"]),
            "--adapter",
            str(config["output_dir"]),
            "--prompt",
            "hi",
            "--compare",
            "--max-new-tokens",
            "8",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    answers = json.loads(done.stdout)
    assert answers["after"] == "zq"
    assert answers["before"] != "zq"
    assert done.stderr == ""
