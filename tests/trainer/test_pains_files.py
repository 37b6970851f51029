"""What users of other trainers complain about in their files, and what happens here instead (the numbers are
those of the pains and traps that this trainer was built against)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.trainer.test_file_effects import PLANS, make, pipeline, same, trained, write
from trainer import convert, inspect_file
from trainer.errors import TrainerError
from trainer.export import tensor_file
from trainer.lora import extract

pytestmark = pytest.mark.models


def meta(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def a1111_takes_it_for(metadata: dict[str, str]) -> str:
    """The rule by which A1111 shows or hides a LoRA (network.py, detect_version)."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "unknown"


def test_pain_18_both_files_are_there_and_a_diffusers_file_becomes_one_for_a1111(
    tmp_path: Path,
) -> None:
    model = trained("sdxl", PLANS["alpha"])
    files = write(tmp_path, model)
    assert set(files) == {"style.safetensors", "pytorch_lora_weights.safetensors"}
    convert.convert(files["pytorch_lora_weights.safetensors"], tmp_path / "made.safetensors")
    ours, made = load_file(files["style.safetensors"]), load_file(tmp_path / "made.safetensors")
    assert ours.keys() == made.keys()
    assert all(torch.equal(ours[key], made[key]) for key in ours)
    assert {float(t) for key, t in made.items() if key.endswith(".alpha")} == {7.0}
    told = inspect_file.inspect(files["pytorch_lora_weights.safetensors"])
    assert told["scale"].keys() == {"1.75"}
    assert any("ComfyUI reads no alpha from this format" in warning for warning in told["warnings"])


@pytest.mark.parametrize(("family", "shown"), [("sd", "SD1"), ("sdxl", "SDXL")])
def test_pain_19_a1111_shows_the_file_with_the_right_models(family: str, shown: str, tmp_path: Path) -> None:
    files = write(tmp_path, trained(family, PLANS["lora"]))
    told = meta(files["style.safetensors"])
    assert a1111_takes_it_for(told) == shown
    assert told["ss_base_model_version"] in ("sd_v1", "sdxl_base_v1-0")
    hidden = {key: value for key, value in told.items() if key != "ss_base_model_version"}
    save_file(load_file(files["style.safetensors"]), tmp_path / "hidden.safetensors", hidden)
    warned = inspect_file.inspect(tmp_path / "hidden.safetensors")["warnings"]
    assert any("A1111 takes the file for SD 1.x and hides it" in warning for warning in warned)


@pytest.mark.parametrize("variant", ["locon", "dora", "loha"])
def test_pain_20_a_file_that_does_not_load_again_as_it_was_is_an_error_at_once(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained("sd", PLANS[variant])
    files = write(tmp_path, model)
    for path in files.values():
        if path.suffix == ".safetensors":
            assert not any("default" in key for key in load_file(path))
    whole = tensor_file.serialize

    def damaged(tensors: Any, metadata: Any = None) -> bytes:
        one = sorted(key for key in tensors if "lora_down" in key or "lora_A" in key or "w1_a" in key)[-1]
        return whole({**tensors, one: tensors[one] * 1.001}, metadata)

    monkeypatch.setattr(tensor_file, "serialize", damaged)
    with pytest.raises(TrainerError, match=r"does not say what was trained.*differ"):
        write(tmp_path, model)


def test_trap_1_diffusers_own_converter_loses_alpha_and_ours_does_not(tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_kohya

    files = write(tmp_path, trained("sd", PLANS["alpha"]))
    theirs = convert_state_dict_to_kohya(load_file(files["pytorch_lora_weights.safetensors"]))
    wrong = {float(tensor) for key, tensor in theirs.items() if key.endswith("alpha")}
    assert wrong == {4.0}, "diffusers was mended: say so in the docs"
    ours = {float(t) for key, t in load_file(files["style.safetensors"]).items() if key.endswith("alpha")}
    assert ours == {7.0}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_trap_2_text_model_is_in_every_name_of_a_text_encoder(family: str, tmp_path: Path) -> None:
    files = write(tmp_path, trained(family, PLANS["lora"]))
    te = "lora_te_" if family == "sd" else "lora_te1_"
    kohya = [key for key in load_file(files["style.safetensors"]) if key.startswith("lora_te")]
    assert sum(key.startswith(f"{te}text_model_encoder_layers_") for key in kohya) == 36
    assert all("_text_model_encoder_layers_" in key for key in kohya)
    theirs = [k for k in load_file(files["pytorch_lora_weights.safetensors"]) if k.startswith("text_encoder")]
    assert all(".text_model.encoder.layers." in key for key in theirs)
    described = json.loads(meta(files["pytorch_lora_weights.safetensors"])["lora_adapter_metadata"])
    assert not any("text_model" in name for name in described["text_encoder.target_modules"])


def test_trap_3_without_its_metadata_a_diffusers_file_acts_at_scale_1_and_inspect_says_so(
    tmp_path: Path,
) -> None:
    model = trained("sd", PLANS["alpha"])
    files = write(tmp_path, model)
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(files["pytorch_lora_weights.safetensors"]), bare)
    told = inspect_file.inspect(bare)
    assert (told["alpha"], told["scale"].keys()) == ({"none": sum(told["modules"].values())}, {"1"})
    assert any("no lora_adapter_metadata" in warning for warning in told["warnings"])
    fresh = make("sd")
    pipeline(fresh).load_lora_weights(str(bare))
    with pytest.raises(AssertionError):
        same(fresh.effect(), model.effect())


def test_trap_4_the_adapter_of_a_bf16_model_is_float32_and_so_are_its_files(tmp_path: Path) -> None:
    from tests.trainer.test_file_effects import LINEAR
    from trainer.lora import inject

    part = make("sd").parts["unet"].to(torch.bfloat16)
    parameters = inject(part, PLANS["dora"], LINEAR, seed=0)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    tensors = [t for layer in extract(part).layers.values() for t in layer.tensors.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_trap_5_loading_a_text_encoders_lora_touches_no_base_weight_and_frightens_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from trainer.quiet import quiet

    files = write(tmp_path, trained("sd", PLANS["lora"]))
    fresh = make("sd")
    before = {name: tensor.clone() for name, tensor in fresh.parts["text_encoder"].state_dict().items()}
    quiet()
    with caplog.at_level(logging.WARNING):
        pipeline(fresh).load_lora_weights(str(files["pytorch_lora_weights.safetensors"]))
    after = fresh.parts["text_encoder"].state_dict()
    for name, tensor in before.items():
        host = name.rsplit(".", 1)
        assert torch.equal(after.get(name, after.get(f"{host[0]}.base_layer.{host[1]}")), tensor)
    assert "newly initialized" not in caplog.text + "".join(capfd.readouterr())
