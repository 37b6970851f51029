"""Which base models are known, by their own headers, and what the others are told."""

from __future__ import annotations

from pathlib import Path

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


SDXL = [
    SD15[0],
    SD15[2],
    "conditioner.embedders.0.transformer.text_model.x",
    "conditioner.embedders.1.model.positional_embedding",
]
SD2 = [SD15[0], "cond_stage_model.model.positional_embedding", SD15[2]]


def test_what_can_be_trained(tmp_path: Path, tiny_sd: Path, tiny_lm: Path) -> None:
    assert (sniff(tiny_sd).family, sniff(tiny_sd).kind) == ("sd15", "images")
    assert (sniff(tiny_lm).format, sniff(tiny_lm).kind) == ("folder", "text")
    for keys, family in ((SD15, "sd15"), (SD2, "sd2"), (SDXL, "sdxl")):
        found = sniff(header_only(tmp_path / f"{family}.safetensors", keys))
        assert (found.family, found.format, found.kind) == (family, "single-file", "images")
    (tmp_path / "m.gguf").write_bytes(b"GGUF....")
    assert sniff(tmp_path / "m.gguf").format == "gguf"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["lora_unet_x.lora_down.weight"], "LoRA adapter"),
        (["unet.a.lora_A.weight"], "LoRA adapter"),
        (["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"], "LoRA adapter"),
        (["lora_unet_x.hada_w1_a"], "LoRA adapter"),
        (["down_blocks.0.attentions.0.proj_in.lokr_w1"], "LoRA adapter"),
        ([SD15[0], SD15[2], "conditioner.embedders.1.model.x"], "SDXL model without all of its parts"),
        ([SD15[0], "conditioner.embedders.0.model.text_projection", SD15[2]], "SDXL refiner"),
        (["double_blocks.0.x"], "FLUX"),
        (["model.diffusion_model.double_blocks.0.x"], "FLUX"),
        (["model.diffusion_model.joint_blocks.0.x"], "SD 3"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["model.layers.0.self_attn.q_proj.weight"], "language model"),
        ([SD15[0]], "without its text encoder and VAE"),
        (["down_blocks.0.resnets.0.conv1.weight"], "without its text encoder and VAE"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text encoder"),
        (["encoder.conv_in.weight"], "VAE"),
        (["something.else"], "something.else"),
    ],
)
def test_pain_15_what_is_no_base_is_named_before_anything_is_loaded(
    tmp_path: Path, keys: list[str], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        sniff(header_only(tmp_path / "m.safetensors", keys))


def test_inpainting_models_are_named(tmp_path: Path) -> None:
    for name, keys in (("a", SD15), ("b", SDXL)):
        with pytest.raises(ModelError, match=r"inpainting.*9 channels"):
            sniff(header_only(tmp_path / f"{name}.safetensors", keys, shape=(2, 9, 1, 1)))
    folder = tmp_path / "folder"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "unet" / "config.json").write_text('{"in_channels": 9}')
    with pytest.raises(ModelError, match="inpainting"):
        sniff(folder)
    (folder / "unet" / "config.json").write_text('{"in_channels": 4, "cross_attention_dim": 1024}')
    assert sniff(folder).family == "sd2"
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ModelError, match="lacks the folders text_encoder_2, tokenizer_2"):
        sniff(folder)


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
        ("pytorch_lora_weights.safetensors", "", "is a LoRA adapter, not a base"),
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


def test_the_real_clip_vocabulary_gives_the_real_ids() -> None:
    from trainer.models.clip_vocab import clip_tokenizer, vocabulary_file

    vocabulary = vocabulary_file()
    if vocabulary is None:
        pytest.skip("open-clip-torch is not installed")
    tokenizer = clip_tokenizer(vocabulary)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
