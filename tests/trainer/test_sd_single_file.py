"""Single files of SD 1.5, SD 2 and SDXL give the tensors of their folders, and those that diffusers reads."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.trainer.ldm_layout import clip_to_ldm, contiguous, openclip_to_ldm, stream, unet_to_ldm, vae_to_ldm
from trainer.cache import Cache
from trainer.config import config_from
from trainer.errors import ConfigError
from trainer.models import clip_vocab, sd_single_file
from trainer.models.base import Setup
from trainer.models.families import family_of
from trainer.models.sd_parts import parts_of, read_config, text_class
from trainer.models.sniff import sniff

Make = Callable[..., dict[str, Any]]
CLIP_L = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32, "attention_head_dim": 4},
        "text_encoder": CLIP_L,
    },
    "sd2": {
        "unet": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32, "attention_head_dim": 4},
        "text_encoder": CLIP_L,
    },
    "sdxl": {
        "unet": {
            "block_out_channels": [32, 32, 64],
            "cross_attention_dim": 64,
            "attention_head_dim": 4,
            "transformer_layers_per_block": [1, 1, 2],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        "text_encoder": CLIP_L,
        "text_encoder_2": {**CLIP_L, "projection_dim": 32},
    },
}


def models(configs: Path, device: str = "cpu") -> dict[str, Any]:
    """Every part of the family whose configs lie in `configs`, with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    found: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        for part in sorted(folder.name for folder in configs.iterdir()):
            if part == "scheduler":
                continue
            values = read_config(configs / part / "config.json")
            if part.startswith("text_encoder"):
                found[part] = text_class(part)(CLIPTextConfig(**values))
            else:
                kind: Any = UNet2DConditionModel if part == "unet" else AutoencoderKL
                found[part] = kind.from_config(values)
    return found


def to_single_file(family: str, states: Mapping[str, dict[str, Tensor]], unet: Mapping[str, Any]) -> Any:
    """The tensors of one file in the original layout."""
    parts = [unet_to_ldm(states["unet"], unet), vae_to_ldm(states["vae"])]
    for name in ("text_encoder", "text_encoder_2"):
        if (family, name) in sd_single_file.CLIP:
            parts.append(clip_to_ldm(states[name], sd_single_file.CLIP[family, name]))
        elif (family, name) in sd_single_file.OPENCLIP:
            parts.append(openclip_to_ldm(states[name], sd_single_file.OPENCLIP[family, name]))
    return contiguous(*parts)


@pytest.fixture
def small_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped configs, with fewer channels."""
    shipped = sd_single_file.CONFIGS
    for family, parts in SMALL.items():
        for file in (shipped / family).rglob("*.json"):
            part = file.parent.name
            small = {"block_out_channels": [32] * 4} if part == "vae" else parts.get(part, {})
            made = tmp_path / "configs" / family / part / file.name
            made.parent.mkdir(parents=True)
            made.write_text(json.dumps({**read_config(file), **small}))
    monkeypatch.setattr(sd_single_file, "CONFIGS", tmp_path / "configs")
    if clip_vocab.vocabulary_file() is None:
        clip_vocab.clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "configs"


def setup(config: dict[str, Any]) -> Setup:
    parsed = config_from(config)
    cache = Cache(parsed.cache_root)
    return Setup(parsed, sniff(parsed.base_model), "digest", cache, torch.device("cpu"), torch.float32)


@pytest.mark.models
@pytest.mark.parametrize("family", list(SMALL))
def test_a_single_file_gives_the_tensors_of_its_parts_and_trains(
    family: str, small_configs: Path, tmp_path: Path, images_config: Make
) -> None:
    from trainer import LoRATrainer

    wanted = models(small_configs / family)
    states = {name: model.state_dict() for name, model in wanted.items()}
    if family == "sd2":  # the original has one block more than is used
        last = {n: t for n, t in states["text_encoder"].items() if "encoder.layers.1." in n}
        states["text_encoder"] |= {
            n.replace("layers.1.", "layers.2."): torch.zeros_like(t) for n, t in last.items()
        }
    unet = read_config(small_configs / family / "unet" / "config.json")
    file = tmp_path / f"{family}.safetensors"
    save_file(to_single_file(family, states, unet), str(file))
    changes = {"prediction_type": "v_prediction"} if family == "sd2" else {}
    config = images_config(base_model=file, resolution=64, max_steps=2, **changes)
    parts = parts_of(setup(config))
    loaded = {"unet": parts.load_unet(), "vae": parts.load_vae()}
    loaded |= {name: parts.load_text(name, torch.float32) for name in parts.encoders}
    for name, model in loaded.items():
        for key, tensor in wanted[name].state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor), (name, key)
        assert set(model.state_dict()) == set(wanted[name].state_dict())
    ids = torch.tensor([[1, 5, 9, 2]])
    for name in parts.encoders:
        theirs = wanted[name].eval()(ids).last_hidden_state
        torch.testing.assert_close(loaded[name](ids).last_hidden_state, theirs)
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    assert (trainer.config.output_dir / "style.safetensors").is_file()


def test_a_single_file_of_sd_2_must_be_told_what_it_predicts(
    small_configs: Path, tmp_path: Path, images_config: Make
) -> None:
    keys = [
        "model.diffusion_model.input_blocks.0.0.weight",
        "cond_stage_model.model.x",
        "first_stage_model.x",
    ]
    save_file({key: torch.zeros(2, 4, 1, 1) for key in keys}, str(tmp_path / "v2.safetensors"))
    with pytest.raises(ConfigError, match=r"SD 2 does not say.*v_prediction for the 768"):
        family_of(setup(images_config(base_model=tmp_path / "v2.safetensors", resolution=64)))


def test_a_file_that_marks_itself_as_predicting_v_is_believed(
    small_configs: Path, tmp_path: Path, images_config: Make
) -> None:
    keys = [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.x",
        "conditioner.embedders.0.transformer.x",
        "conditioner.embedders.1.model.x",
    ]
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({key: torch.zeros(2, 4, 1, 1) for key in keys} | marks, str(tmp_path / "xl.safetensors"))
    family: Any = family_of(setup(images_config(base_model=tmp_path / "xl.safetensors", resolution=64)))
    assert family.prediction == "v_prediction"
    assert float(family.alphas[-1]) == 0.0


def test_openclip_pads_with_zero_and_clip_with_its_end(
    small_configs: Path, tmp_path: Path, images_config: Make
) -> None:
    if clip_vocab.vocabulary_file() is None:
        pytest.skip("open-clip-torch is not installed")
    keys = [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.x",
        "conditioner.embedders.0.transformer.x",
        "conditioner.embedders.1.model.x",
    ]
    save_file({key: torch.zeros(2, 4, 1, 1) for key in keys}, str(tmp_path / "xl.safetensors"))
    parts = parts_of(setup(images_config(base_model=tmp_path / "xl.safetensors", resolution=64)))
    for name, pad in (("text_encoder", 49407), ("text_encoder_2", 0)):
        ids = parts.load_tokenizer(name)("a cat", padding="max_length", max_length=77).input_ids
        assert (ids[:4], set(ids[4:])) == ([49406, 320, 2368, 49407], {pad})


def digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()  # type: ignore[arg-type]


def random_states(models: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Every tensor of models on `meta` as fp16: its own stretch of one buffer of random numbers."""
    noise = torch.randn(64_000_003, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    place = 0

    def stretches() -> Iterator[tuple[str, str, Tensor]]:
        nonlocal place
        for part, model in models.items():
            for name, tensor in model.state_dict().items():
                place = (place + 7919) % (len(noise) - tensor.numel() % len(noise))
                count = tensor.numel()
                assert count <= len(noise)
                start = place if place + count <= len(noise) else 0
                yield part, name, noise[start : start + count].view(tensor.shape)

    found: dict[str, dict[str, Tensor]] = {part: {} for part in models}
    for part, name, tensor in stretches():
        found[part][name] = tensor
    return found


@pytest.mark.models
@pytest.mark.skipif(
    "LORA_OPS_FULL_SIZE" not in os.environ,
    reason="writes 2 and 7 GB and takes minutes; LORA_OPS_FULL_SIZE=1 runs it",
)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_full_size_single_file_is_read_as_diffusers_reads_it(
    family: str, tmp_path: Path, images_config: Make
) -> None:
    """Random weights in the published sizes: our loader's tensors are those that were written, and those of
    diffusers' own pipeline."""
    import diffusers

    shipped = sd_single_file.CONFIGS / family
    file = tmp_path / f"{family}.safetensors"
    shapes = models(shipped, "meta")
    states = random_states(shapes)
    written = {part: {n: digest(t) for n, t in tensors.items()} for part, tensors in states.items()}
    stream(file, to_single_file(family, states, read_config(shipped / "unet" / "config.json")))
    del states
    gc.collect()
    parts = parts_of(setup(images_config(base_model=file)))
    parts.setup.dtype = torch.float16
    for name in written:
        loaded: Any = (
            parts.load_unet()
            if name == "unet"
            else parts.load_vae()
            if name == "vae"
            else parts.load_text(name, torch.float16)
        )
        assert {n: digest(t.half()) for n, t in loaded.state_dict().items()} == written[name]
        del loaded
        gc.collect()

    configs = tmp_path / "pipeline"
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    }
    for part in written:
        (configs / part).mkdir(parents=True)
        (configs / part / "config.json").write_text((shipped / part / "config.json").read_text())
        library = "transformers" if part.startswith("text") else "diffusers"
        index[part] = [library, type(shapes[part]).__name__]
    (configs / "scheduler").mkdir()
    (configs / "scheduler" / "scheduler_config.json").write_text(
        (shipped / "scheduler" / "scheduler_config.json").read_text()
    )
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    for name in parts.encoders:
        folder = name.replace("text_encoder", "tokenizer")
        parts.load_tokenizer(name).save_pretrained(configs / folder)
        index[folder] = ["transformers", "CLIPTokenizer"]
    if family == "sd15":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (configs / "model_index.json").write_text(json.dumps(index))
    pipeline: Any = getattr(diffusers, str(index["_class_name"])).from_single_file(
        str(file), config=str(configs), torch_dtype=torch.float16, local_files_only=True
    )
    for name, tensors in written.items():
        theirs = {n: digest(t) for n, t in getattr(pipeline, name).state_dict().items()}
        assert theirs == tensors, name
