"""What is written acts in other programs as it did in training: through diffusers' own loader and peft's, and
by the formulas of those who read kohya's file."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.trainer.sd_shapes import TINY_SD, TINY_SDXL, text_encoder, unet
from trainer.export.images import ImageFacts, save_images
from trainer.export.names import family_of, naming
from trainer.lora import Plan, extract, inject

pytestmark = pytest.mark.models

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
CONV = [*LINEAR, "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]

PLANS = {
    "lora": Plan(rank=4, alpha=4),
    "alpha": Plan(rank=4, alpha=7),
    "low_alpha": Plan(rank=8, alpha=1),
    "locon": Plan(rank=4, alpha=2, conv_rank=2, conv_alpha=3),
    "dora": Plan(rank=4, alpha=6, dora=True),
    "dora_locon": Plan(rank=4, alpha=6, dora=True, conv_rank=2, conv_alpha=1),
    "rslora": Plan(rank=4, alpha=3, rslora=True),
    "rslora_locon": Plan(rank=4, alpha=3, rslora=True, conv_rank=9, conv_alpha=2),
    "olora": Plan(rank=2, alpha=3, init="olora"),
    "loha": Plan(rank=2, alpha=3, kind="loha"),
    "lokr": Plan(rank=2, alpha=3, kind="lokr"),
}
LORAS = [name for name, plan in PLANS.items() if plan.kind == "lora"]


@dataclass
class Model:
    """A UNet and its text encoders, the same for the same family."""

    parts: dict[str, Any]
    config: dict[str, Any]

    @property
    def xl(self) -> bool:
        return "text_encoder_2" in self.parts

    def effect(self) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(5)
        latent = torch.randn(1, 4, 8, 8, generator=rng)
        context = torch.randn(1, 7, self.config["cross_attention_dim"], generator=rng)
        extra = {}
        if self.xl:
            pooled = torch.randn(1, 32, generator=rng)
            extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.arange(6.0)[None]}}
        with torch.no_grad():
            out = {"unet": self.parts["unet"](latent, torch.tensor([400]), context, **extra).sample}
            for name, part in self.parts.items():
                if name != "unet":
                    out[name] = part(torch.tensor([[98, 3, 5, 7, 99]])).last_hidden_state
        return out


def make(family: str) -> Model:
    config = TINY_SDXL if family == "sdxl" else TINY_SD
    parts = {"unet": unet(config, "cpu").eval(), "text_encoder": text_encoder(32, 2, 4, "cpu").eval()}
    if family == "sdxl":
        parts["text_encoder_2"] = text_encoder(32, 2, 4, "cpu", projection=True).eval()
    return Model(parts, config)


def trained(family: str, plan: Plan) -> Model:
    """As after some training: no tensor of the adapter is at its start."""
    model = make(family)
    rng = torch.Generator().manual_seed(1)
    for name, part in model.parts.items():
        targets = (CONV if plan.conv_rank else LINEAR) if name == "unet" else TEXT
        for key, parameter in inject(part, plan, targets, seed=3).items():
            noise = torch.randn(parameter.shape, generator=rng)
            change = parameter.data * 0.2 * noise if "magnitude" in key else 0.15 * noise
            parameter.data.add_(change)
    return model


def write(folder: Path, model: Model) -> dict[str, Path]:
    adapters = {name: extract(part) for name, part in model.parts.items()}
    facts = ImageFacts(name="style", unet=model.config, base_model="base", resolution=64, captions=["a, b"])
    return {path.name: path for path in save_images(folder, adapters, facts)}


def pipeline(model: Model) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    rest = {"vae": None, "tokenizer": None, "scheduler": scheduler, "feature_extractor": None}
    if model.xl:
        return StableDiffusionXLPipeline(**model.parts, **rest, tokenizer_2=None, add_watermarker=False)
    return StableDiffusionPipeline(**model.parts, **rest, safety_checker=None, requires_safety_checker=False)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("variant", LORAS)
def test_diffusers_own_loader_gives_the_same_effect_from_both_files(
    family: str, variant: str, tmp_path: Path
) -> None:
    model = trained(family, PLANS[variant])
    wanted, plain = model.effect(), make(family).effect()
    assert all((wanted[name] - plain[name]).abs().max() > 1e-3 for name in plain)
    files = write(tmp_path, model)
    fresh = make(family)
    pipe = pipeline(fresh)
    for name in ("pytorch_lora_weights.safetensors", "style.safetensors"):
        if PLANS[variant].dora and name == "style.safetensors":
            continue
        pipe.load_lora_weights(str(files[name]))
        same(fresh.effect(), wanted)
        pipe.unload_lora_weights()
    same(fresh.effect(), plain)


@pytest.mark.parametrize("variant", ["loha", "lokr"])
def test_peft_loads_what_diffusers_loader_cannot(variant: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = trained("sdxl", PLANS[variant])
    write(tmp_path, model)
    assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()
    fresh = make("sdxl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        fresh.parts = {
            name: PeftModel.from_pretrained(part, str(tmp_path / name)) for name, part in fresh.parts.items()
        }
    same(fresh.effect(), model.effect())


@pytest.mark.parametrize("variant", PLANS)
def test_kohyas_file_gives_the_same_effect_by_lycoris_formulas(variant: str, tmp_path: Path) -> None:
    model = trained("sdxl", PLANS[variant])
    files = write(tmp_path, model)
    fresh = make("sdxl")
    apply_kohya(fresh, load_file(files["style.safetensors"]))
    same(fresh.effect(), model.effect())


def apply_kohya(model: Model, file: dict[str, Tensor]) -> None:
    """Add a kohya file to a model's weights, as LyCORIS (and, but for DoRA's norm, ComfyUI) documents it."""
    names = naming(family_of(model.config))
    modules = {
        names.kohya(part, path): module
        for part, root in model.parts.items()
        for path, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    for name in {key.split(".")[0] for key in file}:
        t = {key.split(".", 1)[1]: tensor for key, tensor in file.items() if key.split(".")[0] == name}
        weight = modules.pop(name).weight
        alpha = float(t["alpha"])
        if "lora_down.weight" in t:
            down, up = t["lora_down.weight"], t["lora_up.weight"]
            delta = up.flatten(1) @ down.flatten(1) * (alpha / down.shape[0])
        elif "hada_w1_a" in t:
            delta = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
            delta = delta * (alpha / t["hada_w1_b"].shape[0])
        else:
            rank = next((t[key].shape[0] for key in ("lokr_w1_b", "lokr_w2_b") if key in t), None)
            w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
            w2 = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
            w1 = w1.reshape(*w1.shape, *[1] * (w2.dim() - 2))
            delta = torch.kron(w1, w2) * (1.0 if rank is None else alpha / rank)
        merged = weight.data + delta.reshape(weight.shape)
        if "dora_scale" in t:
            assert t["dora_scale"].shape == (weight.shape[0], *[1] * (weight.dim() - 1))
            norm = merged.flatten(1).norm(dim=1).reshape(t["dora_scale"].shape)
            merged = merged * (t["dora_scale"] / norm)
        weight.data = merged


def test_rslora_alpha_is_the_effective_one(tmp_path: Path) -> None:
    files = write(tmp_path, trained("sd", PLANS["rslora"]))
    alphas = {float(t) for key, t in load_file(files["style.safetensors"]).items() if key.endswith("alpha")}
    assert len(alphas) == 1
    assert math.isclose(alphas.pop() / 4, 3 / math.sqrt(4), rel_tol=1e-6)


@pytest.mark.parametrize("variant", ["lora", "locon", "dora", "loha"])
def test_the_same_adapter_gives_the_same_bytes(variant: str, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    read = []
    for folder in folders:
        folder.mkdir()
        files = write(folder, trained("sdxl", PLANS[variant]))
        read.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
        assert files
    assert read[0] == read[1]


def test_a_folder_holds_the_files_of_its_last_training_only(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}

    lora, lokr = trained("sd", PLANS["lora"]), trained("sd", PLANS["lokr"])
    write(tmp_path, lora)
    first = names()
    write(tmp_path, lokr)
    parts = ("unet", "text_encoder")
    peft = {
        f"{part}/{name}" for part in parts for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    assert names() == {"style.safetensors", *peft}
    write(tmp_path, lora)
    assert names() == first == {"style.safetensors", "pytorch_lora_weights.safetensors"}
