"""Names in the files: against diffusers' own conversion and the counts of the published architectures."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.trainer.sd_shapes import (
    CONV_HOSTS,
    LINEAR_HOSTS,
    SD15,
    SDXL,
    TEXT_HOSTS,
    TINY_SDXL,
    hosted,
    text_encoder,
    unet,
)
from trainer.export.names import classic, family_of, flat, naming, sgm_names


@cache
def published(family: str) -> Any:
    return unet(SD15 if family == "sd1" else SDXL)


def through_diffusers(names: list[str], config: dict[str, Any]) -> set[str]:
    """The modules that diffusers' own readers take these kohya names for."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils import convert_unet_state_dict_to_peft

    tensors = {}
    for name in names:
        tensors |= {
            f"{name}.lora_down.weight": torch.zeros(1, 1),
            f"{name}.lora_up.weight": torch.zeros(1, 1),
        }
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    mapped = _maybe_map_sgm_blocks_to_diffusers(tensors, SimpleNamespace(**config))
    state, alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    assert len(alphas) == len(names)
    state = {key.removeprefix("unet."): value for key, value in state.items()}
    return {key.split(".lora_")[0] for key in convert_unet_state_dict_to_peft(state)}


@pytest.mark.parametrize(("config", "linear", "all_of_them"), [(SD15, 192, 278), (SDXL, 722, 788)])
def test_kohyas_module_counts(config: dict[str, Any], linear: int, all_of_them: int) -> None:
    model = published(family_of(config))
    names = naming(family_of(config), config)
    for hosts, count in ((LINEAR_HOSTS, linear), ((*LINEAR_HOSTS, *CONV_HOSTS), all_of_them)):
        modules = hosted(model, hosts)
        kohya = {names.kohya("unet", module) for module in modules}
        assert len(modules) == len(kohya) == count
        assert {names.module(name) for name in kohya} == {("unet", module) for module in modules}


@pytest.mark.parametrize("config", [SD15, SDXL])
def test_diffusers_own_readers_find_every_module_under_our_names(config: dict[str, Any]) -> None:
    modules = hosted(published(family_of(config)), (*LINEAR_HOSTS, *CONV_HOSTS))
    names = naming(family_of(config), config)
    assert through_diffusers([names.kohya("unet", module) for module in modules], config) == set(modules)


def test_sdxl_has_sgm_names_only() -> None:
    names = naming("sdxl", SDXL)
    kohya = [
        names.kohya("unet", module) for module in hosted(published("sdxl"), (*LINEAR_HOSTS, *CONV_HOSTS))
    ]
    assert all(
        name.startswith(("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_")) for name in kohya
    )
    to_q = "attentions.1.transformer_blocks.3.attn2.to_q"
    assert names.kohya("unet", f"down_blocks.2.{to_q}") == (
        "lora_unet_input_blocks_8_1_transformer_blocks_3_attn2_to_q"
    )
    assert names.kohya("unet", "mid_block.attentions.0.proj_in") == "lora_unet_middle_block_1_proj_in"
    assert names.kohya("unet", "up_blocks.1.upsamplers.0.conv") == "lora_unet_output_blocks_5_2_conv"
    assert names.kohya("unet", "down_blocks.0.downsamplers.0.conv") == "lora_unet_input_blocks_3_0_op"
    assert names.kohya("unet", "mid_block.resnets.1.conv2") == "lora_unet_middle_block_2_out_layers_3"
    assert names.kohya("unet", "time_embedding.linear_2") == "lora_unet_time_embed_2"


def test_the_published_names_are_those_of_the_published_config() -> None:
    assert naming("sdxl").sgm == naming("sdxl", SDXL).sgm == naming("sdxl", TINY_SDXL).sgm
    assert naming("sd1").sgm == naming("sd2").sgm == {}


def test_an_upsampler_without_attention_before_it_comes_one_place_earlier() -> None:
    sgm = sgm_names(1, ["DownBlock2D"] * 2, ["UpBlock2D"] * 2)
    assert sgm["up_blocks.0.upsamplers.0.conv"] == "output_blocks.1.1.conv"
    assert sgm["down_blocks.1.resnets.0.conv1"] == "input_blocks.3.0.in_layers.2"


@pytest.mark.parametrize(
    ("projection", "component", "prefix"),
    [(False, "text_encoder", "lora_te1_"), (True, "text_encoder_2", "lora_te2_")],
)
def test_text_encoders_have_72_modules_each_and_text_model_in_their_names(
    projection: bool, component: str, prefix: str
) -> None:
    modules = hosted(text_encoder(64, 12, 4, projection=projection), TEXT_HOSTS)
    names = naming("sdxl")
    kohya = [names.kohya(component, module) for module in modules]
    assert len(set(kohya)) == 72
    assert all(name.startswith(f"{prefix}text_model_encoder_layers_") for name in kohya)
    assert [names.module(name) for name in kohya] == [(component, classic(component, m)) for m in modules]
    assert {flat(component, m) for m in modules} == {flat(component, classic(component, m)) for m in modules}


def test_sd15_text_encoder_is_lora_te_not_te1() -> None:
    name = naming("sd1").kohya("text_encoder", "encoder.layers.3.mlp.fc1")
    assert name == "lora_te_text_model_encoder_layers_3_mlp_fc1"
    assert naming("sd1").module(name.replace("lora_te_", "lora_te1_")) == (
        "text_encoder",
        "text_model.encoder.layers.3.mlp.fc1",
    )


@pytest.mark.parametrize("name", ["lora_unet_double_blocks_0_img_mod", "lora_te3_x", "unet.x", "lora_unet_"])
def test_unknown_names_are_not_guessed(name: str) -> None:
    assert naming("sdxl").module(name) is None
    assert naming("sd1").module(name) is None


def test_the_family_is_in_the_unets_config() -> None:
    assert [family_of(c) for c in (SD15, SDXL, {"cross_attention_dim": 1024})] == ["sd1", "sdxl", "sd2"]
