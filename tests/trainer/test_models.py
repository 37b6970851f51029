"""Which base models are known, by their own headers, and what the others are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.errors import ModelError
from trainer.export.tensor_file import write
from trainer.models.sniff import sniff

SD15 = [
    "model.diffusion_model.input_blocks.0.0.weight",
    "cond_stage_model.transformer.text_model.x",
    "first_stage_model.encoder.conv_in.weight",
]


def header_only(path: Path, keys: list[str], shape: tuple[int, ...] = (2, 4, 1, 1)) -> Path:
    write(path, {key: torch.zeros(shape) for key in keys})
    return path


def test_what_can_be_trained(tmp_path: Path, tiny_sd: Path, tiny_lm: Path) -> None:
    assert (sniff(tiny_sd).family, sniff(tiny_sd).kind) == ("sd15", "images")
    assert (sniff(tiny_lm).format, sniff(tiny_lm).kind) == ("folder", "text")
    assert sniff(header_only(tmp_path / "m.safetensors", SD15)).format == "single-file"
    (tmp_path / "m.gguf").write_bytes(b"GGUF....")
    assert sniff(tmp_path / "m.gguf").format == "gguf"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["lora_unet_x.lora_down.weight"], "LoRA adapter"),
        (["unet.a.lora_A.weight"], "LoRA adapter"),
        ([*SD15, "conditioner.embedders.1.model.x"], "SDXL"),
        ([SD15[0], "cond_stage_model.model.transformer.x", SD15[2]], "SD 2"),
        (["double_blocks.0.x"], "FLUX"),
        (["model.layers.0.self_attn.q_proj.weight"], "language model"),
        (["encoder.conv_in.weight"], "VAE"),
        (["something.else"], "something.else"),
    ],
)
def test_others_are_named(tmp_path: Path, keys: list[str], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        sniff(header_only(tmp_path / "m.safetensors", keys))


def test_inpainting_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="inpainting"):
        sniff(header_only(tmp_path / "m.safetensors", SD15, shape=(2, 9, 1, 1)))


def test_missing_damaged_and_wrong_paths(tmp_path: Path, tiny_sd: Path) -> None:
    whole = header_only(tmp_path / "v1-5-pruned.safetensors", SD15)
    with pytest.raises(
        ModelError, match=r"v1-5-prund\.safetensors does not exist.*Did you mean .*v1-5-pruned\.safetensors"
    ):
        sniff(tmp_path / "v1-5-prund.safetensors")
    with pytest.raises(ModelError, match="never downloaded"):
        sniff(Path("runwayml/stable-diffusion-v1-5"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-8])
    with pytest.raises(ModelError, match="cut off"):
        sniff(cut)
    for name, data in (
        ("a.safetensors", b""),
        ("b.safetensors", b"\xff" * 40),
        ("c.gguf", b"no"),
        ("d.ckpt", b"x"),
        ("e", b""),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError):
            sniff(tmp_path / name)
    for name, content, said in (
        ("adapter_config.json", "{}", "LoRA adapter"),
        ("config.json", '{"architectures": ["BertModel"]}', "BertModel"),
        ("config.json", "{", "cannot be read"),
        ("model_index.json", '{"_class_name": "FluxPipeline"}', "FluxPipeline"),
        ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}', "lacks the folders unet"),
        ("model.gguf", "", "name the file itself"),
    ):
        folder = tmp_path / f"{said}"
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ModelError, match=said):
            sniff(folder)


def to_ldm(unet: dict[str, Any], vae: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """The original layout of a Stable Diffusion 1.5 checkpoint, from diffusers' names."""
    blocks: list[tuple[str, str]] = []
    for i in range(4):
        for j in range(2):
            blocks += [
                (f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{3 * i + j + 1}.0."),
                (f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{3 * i + j + 1}.1."),
            ]
        for j in range(3):
            blocks += [
                (f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{3 * i + j}.0."),
                (f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{3 * i + j}.1."),
            ]
        blocks += [
            (f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{3 * (i + 1)}.0.op."),
            (f"up_blocks.{i}.upsamplers.0.", f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}."),
        ]
    blocks += [
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.resnets.1.", "middle_block.2."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
    ]
    inner = [
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ]
    out: dict[str, Any] = {}
    for name, tensor in unet.items():
        start, new = next((a, b) for a, b in blocks if name.startswith(a))
        rest = name.removeprefix(start)
        if "resnets" in start:
            for a, b in inner:
                rest = rest.replace(f"{a}.", f"{b}.") if rest.startswith(f"{a}.") else rest
        out[f"model.diffusion_model.{new}{rest}"] = tensor
    for name, tensor in vae.items():
        new = name
        for i in range(4):
            for j in range(3):
                new = new.replace(f"encoder.down_blocks.{i}.resnets.{j}.", f"encoder.down.{i}.block.{j}.")
                new = new.replace(f"decoder.up_blocks.{i}.resnets.{j}.", f"decoder.up.{3 - i}.block.{j}.")
            new = new.replace(f"down_blocks.{i}.downsamplers.0.", f"down.{i}.downsample.")
            new = new.replace(f"up_blocks.{i}.upsamplers.0.", f"up.{3 - i}.upsample.")
        for a, b in (
            ("mid_block.resnets.0.", "mid.block_1."),
            ("mid_block.resnets.1.", "mid.block_2."),
            ("mid_block.attentions.0.", "mid.attn_1."),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
        ):
            new = new.replace(a, b)
        if ".attn_1." in new:
            for a, b in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                new = new.replace(f"attn_1.{a}.", f"attn_1.{b}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        out[f"first_stage_model.{new}"] = tensor
    for name, tensor in text.items():
        out[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def test_a_single_file_gives_the_tensors_of_its_folder_and_trains(
    tmp_path: Path, images_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shape of SD 1.5, fewer channels: to the original layout and back through our loader."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    from trainer import LoRATrainer
    from trainer.models import clip_vocab, sd_single_file
    from trainer.models.sd_parts import read_config

    shipped = sd_single_file.CONFIGS
    small: dict[str, dict[str, Any]] = {
        "unet": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32, "attention_head_dim": 4},
        "vae": {"block_out_channels": [32, 32, 32, 32]},
        "text_encoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "scheduler": {},
    }
    for part, changes in small.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (tmp_path / "configs" / part).mkdir(parents=True)
        values = {**read_config(shipped / part / name), **changes}
        (tmp_path / "configs" / part / name).write_text(json.dumps(values))
    monkeypatch.setattr(sd_single_file, "CONFIGS", tmp_path / "configs")
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(read_config(tmp_path / "configs" / "unet" / "config.json"))
    vae = AutoencoderKL.from_config(read_config(tmp_path / "configs" / "vae" / "config.json"))
    text = CLIPTextModel(CLIPTextConfig(**read_config(tmp_path / "configs" / "text_encoder" / "config.json")))
    file = tmp_path / "v1-5-tiny.safetensors"
    write(file, to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict()))

    if clip_vocab.vocabulary_file() is None:
        clip_vocab.clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    trainer = LoRATrainer(images_config(base_model=file, resolution=64, max_steps=2))
    trainer.prepare_data()
    parts = trainer.family.parts  # type: ignore[union-attr]
    for mine, theirs in ((parts.load_unet(), unet), (parts.load_vae(), vae), (parts.load_text()[1], text)):
        wanted = theirs.state_dict()
        assert set(mine.state_dict()) == set(wanted)
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, wanted[name]), name
    trainer.build_model()
    trainer.train()
    assert (trainer.config.output_dir / "style.safetensors").is_file()


def test_the_real_clip_vocabulary_gives_the_real_ids() -> None:
    from trainer.models.clip_vocab import clip_tokenizer, vocabulary_file

    vocabulary = vocabulary_file()
    if vocabulary is None:
        pytest.skip("open-clip-torch is not installed")
    tokenizer = clip_tokenizer(vocabulary)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
