"""`inspect` tells what a file is, `convert` changes its format and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer import convert, inspect_file
from trainer.errors import ModelError, UserError
from trainer.export import diffusers, kohya, peft
from trainer.export.description import describe
from trainer.export.effect import delta, deltas, scale
from trainer.export.kohya_metadata import metadata
from trainer.export.names import Family, naming
from trainer.export.read import read
from trainer.export.resize import resized
from trainer.lora import Adapter, Layer

ATTENTION = "attentions.0.transformer_blocks.0.attn2"
BLOCK = f"down_blocks.1.{ATTENTION}"
UNET = [f"{BLOCK}.to_k", f"{BLOCK}.to_q", f"mid_block.{ATTENTION}.to_out.0"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]
WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}


def layer(width: int = 6, rank: int = 2, alpha: float = 3.0, kind: str = "lora", dora: bool = False) -> Layer:
    rng = torch.Generator().manual_seed(width + rank)

    def t(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    if kind == "loha":
        tensors = {"w1_a": t(4, rank), "w1_b": t(rank, width), "w2_a": t(4, rank), "w2_b": t(rank, width)}
    elif kind == "lokr":
        tensors = {"w1": t(2, 2), "w2_a": t(2, rank), "w2_b": t(rank, width // 2)}
    elif kind == "full":
        tensors = {"w1": t(2, 2), "w2": t(2, width // 2)}
    else:
        tensors = {"down": t(rank, width), "up": t(4, rank)}
        if dora:
            tensors["magnitude"] = t(4).abs()
    return Layer("lokr" if kind == "full" else kind, rank, alpha, tensors)  # type: ignore[arg-type]


def adapters(family: Family = "sd1", rslora: bool = False, **how: Any) -> dict[str, Adapter]:
    width = WIDTHS[family]
    parts = {"unet": {n: layer(width if n.endswith("to_k") else 6, **how) for n in UNET}}
    parts["text_encoder"] = {n: layer(8, **how) for n in TEXT}
    if family == "sdxl":
        parts["text_encoder_2"] = {f"text_model.{n}": layer(8, **how) for n in TEXT}
    return {
        part: Adapter(dict(sorted(layers.items())), describe(layers, rslora), rslora)
        for part, layers in parts.items()
    }


def write_kohya(path: Path, family: Family = "sd1", **how: Any) -> Path:
    made = adapters(family, **how)
    tensors = {}
    for part, adapter in made.items():
        tensors |= kohya.to_kohya(part, adapter, naming(family))
    meta = metadata(
        made, family=family, name="style", resolution=512, prediction="epsilon", captions=["a, b", "a"]
    )
    kohya.save(path, tensors, meta)
    return path


def same_effect(one: dict[str, Adapter], two: dict[str, Adapter]) -> None:
    def named(adapter: Adapter) -> dict[str, torch.Tensor]:
        return {name.removeprefix("text_model."): d for name, d in deltas(adapter).items()}

    assert one.keys() == two.keys()
    for part in one:
        first, second = named(one[part]), named(two[part])
        assert first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_inspect_tells_family_rank_alpha_modules_and_tool(family: Family, tmp_path: Path) -> None:
    facts = inspect_file.inspect(write_kohya(tmp_path / "x.safetensors", family))
    assert (facts["what"], facts["format"], facts["family"], facts["kind"]) == (
        "lora",
        "kohya",
        family,
        "lora",
    )
    count = 5 if family != "sdxl" else 7
    assert (facts["rank"], facts["alpha"], facts["scale"]) == ({"2": count}, {"3": count}, {"1.5": count})
    assert facts["modules"] | {"unet": 3, "text_encoder": 2} == facts["modules"]
    assert facts["dtype"] == {"F32": 2 * count}
    assert facts["metadata"]["ss_network_dim"] == "2"
    assert facts["warnings"] == []
    diffusers.save_file(tmp_path / "d.safetensors", adapters(family))
    facts = inspect_file.inspect(tmp_path / "d.safetensors")
    assert (facts["format"], facts["family"], facts["alpha"]) == ("diffusers", family, {"3": count})
    assert ["ComfyUI" in warning for warning in facts["warnings"]] == [True]


@pytest.mark.parametrize(
    ("how", "kind"), [({"kind": "loha"}, "loha"), ({"kind": "lokr"}, "lokr"), ({"dora": True}, "dora")]
)
def test_inspect_tells_the_kind(how: dict[str, Any], kind: str, tmp_path: Path) -> None:
    facts = inspect_file.inspect(write_kohya(tmp_path / "x.safetensors", **how))
    assert facts["kind"] == kind
    assert any("diffusers" in warning for warning in facts["warnings"])


def test_inspect_reads_a_peft_folder_and_rslora(tmp_path: Path) -> None:
    layers = {f"model.layers.{i}.self_attn.q_proj": layer(rank=4, alpha=8) for i in range(3)}
    peft.save(
        tmp_path, Adapter(layers, {"task_type": "CAUSAL_LM", "peft_version": "0.21"}, True), "some/base"
    )
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        facts = inspect_file.inspect(path)
        assert (facts["format"], facts["family"], facts["tool"]) == ("peft", "language model", "peft 0.21")
        assert (facts["scale"], facts["rslora"], facts["modules"]) == ({"4": 3}, True, {"model": 3})
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="alpha is not known"):
        inspect_file.inspect(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_inspect_reads_alphas_of_every_number_format(dtype: torch.dtype, tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "x.safetensors")
    tensors = {k: t.to(dtype) if k.endswith("alpha") else t for k, t in load_file(path).items()}
    save_file(tensors, path)
    assert inspect_file.inspect(path)["alpha"] == {"3": 5}


def test_inspect_names_what_is_no_lora(tmp_path: Path, tiny_sd: Path, tiny_lm: Path) -> None:
    assert inspect_file.inspect(tiny_sd)["what"] == "base model"
    assert inspect_file.inspect(tiny_lm)["family"] == "causal-lm"
    save_file({"double_blocks.0.lora_A.weight": torch.zeros(1)}, tmp_path / "flux.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    cut = write_kohya(tmp_path / "cut.safetensors")
    cut.write_bytes(cut.read_bytes()[:-7])
    for path, kind, words in (
        (tmp_path / "none", UserError, "does not exist"),
        (tmp_path / "flux.safetensors", UserError, "LoRA of another kind"),
        (tmp_path / "x.safetensors", UserError, "no LoRA"),
        (cut, ModelError, "cut off"),
    ):
        with pytest.raises(kind, match=words):
            inspect_file.inspect(path)


def test_the_commands_are_commands_of_the_trainer_and_inspect_needs_no_torch(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "x.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None; from trainer.__main__ import main; "
        f"sys.exit(main(['inspect', {str(path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "rank 2, alpha 3, applied at scale 1.5" in done.stdout
    assert "Stable Diffusion 1.x" in done.stdout


def test_inspect_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_kohya(tmp_path / "x.safetensors", rank=3)
    assert inspect_file.main([str(path), "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["metadata"]["ss_tag_frequency"] == '{"style": {"a": 2, "b": 1}}'
    )
    assert inspect_file.main([str(tmp_path / "none.safetensors")]) == 3
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("how", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
def test_there_and_back_again_is_lossless(family: Family, how: dict[str, Any], tmp_path: Path) -> None:
    first = write_kohya(tmp_path / "a.safetensors", family, **how)
    convert.convert(first, tmp_path / "b.safetensors")
    convert.convert(tmp_path / "b.safetensors", tmp_path / "c")
    convert.convert(tmp_path / "c", tmp_path / "d.safetensors")
    kinds = [inspect_file.inspect(tmp_path / n)["format"] for n in ("b.safetensors", "c", "d.safetensors")]
    assert kinds == ["diffusers", "peft", "kohya"]
    one, two = load_file(first), load_file(tmp_path / "d.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    convert.convert(tmp_path / "b.safetensors", tmp_path / "e.safetensors")
    with safe_open(first, "pt") as a, safe_open(tmp_path / "e.safetensors", "pt") as e:
        kept = {k: v for k, v in a.metadata().items() if not k.startswith("sshs_")}
        assert kept.items() <= {**e.metadata(), "ss_output_name": "style", "modelspec.title": "style"}.items()


@pytest.mark.parametrize("kind", ["loha", "lokr", "full"])
def test_products_keep_their_effect_and_go_where_somebody_reads_them(kind: str, tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "a.safetensors", kind=kind)
    same_effect(read(path).adapters, adapters(kind=kind))
    with pytest.raises(UserError, match="cannot read lo"):
        convert.convert(path, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()
    if kind == "loha":
        convert.convert(path, tmp_path / "b")
        same_effect(read(tmp_path / "b").adapters, adapters(kind=kind))


def test_the_folder_of_a_training_is_its_diffusers_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    file = write_kohya(tmp_path / "k.safetensors")
    convert.convert(file, folder / "pytorch_lora_weights.safetensors")
    convert.convert(folder, tmp_path / "again.safetensors")
    same_effect(read(file).adapters, read(tmp_path / "again.safetensors").adapters)


def test_convert_writes_over_nothing_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_kohya(tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    target.write_bytes(b"mine")
    assert convert.main([str(source), str(target)]) == 3
    assert "--force" in capsys.readouterr().err
    assert target.read_bytes() == b"mine"
    assert convert.main([str(source), str(target), "--force"]) == 0
    assert inspect_file.inspect(target)["format"] == "diffusers"
    assert convert.main([str(source), str(source), "--to", "kohya", "--force"]) == 3
    assert convert.main([str(source), str(tmp_path / "no" / "b.safetensors")]) == 3


def test_converting_a_kohya_file_to_itself_mends_what_inspect_warns_of(tmp_path: Path) -> None:
    good = load_file(write_kohya(tmp_path / "good.safetensors", "sdxl", dora=True))
    names = naming("sdxl")
    bad = {}
    for key, tensor in good.items():
        name, _, end = key.partition(".")
        place = names.module(name)
        assert place is not None
        path = place[1].removeprefix("text_model.").replace(".", "_")
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[place[0]]
        bad[f"{prefix}{path}.{end}"] = tensor.flatten() if end == "dora_scale" else tensor
    save_file(bad, tmp_path / "bad.safetensors", {"ss_seed": "1"})
    mended = [w for w in inspect_file.inspect(tmp_path / "bad.safetensors")["warnings"] if "Convert" in w]
    assert len(mended) == 4
    convert.convert(tmp_path / "bad.safetensors", tmp_path / "ok.safetensors", to="kohya")
    facts = inspect_file.inspect(tmp_path / "ok.safetensors")
    assert [w for w in facts["warnings"] if "Convert" in w] == []
    ok = load_file(tmp_path / "ok.safetensors")
    assert ok.keys() == good.keys()
    assert all(torch.equal(ok[key], good[key]) for key in ok)
    assert facts["metadata"]["ss_seed"] == "1"
    assert facts["metadata"]["ss_base_model_version"] == "sdxl_base_v1-0"


def test_dora_for_each_input_is_not_taken_for_one_for_each_output(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "a.safetensors", dora=True)
    tensors = {k: torch.ones(1, 6) if k.endswith("dora_scale") else t for k, t in load_file(path).items()}
    save_file(tensors, path)
    assert any("for each input" in warning for warning in inspect_file.inspect(path)["warnings"])
    with pytest.raises(UserError, match="for each input"):
        convert.convert(path, tmp_path / "b.safetensors")


def test_convert_lists_keys_that_it_does_not_know(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "a.safetensors")
    save_file({**load_file(path), "lora_unet_moon_0.lora_up.weight": torch.zeros(2, 2)}, path)
    facts = inspect_file.inspect(path)
    assert facts["unknown_keys"] == ["lora_unet_moon_0.lora_up.weight"]
    assert any("nobody applies them" in warning for warning in facts["warnings"])
    with pytest.raises(UserError, match="lora_unet_moon_0"):
        convert.convert(path, tmp_path / "b.safetensors")


def test_a_family_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    layers = {UNET[1]: layer()}
    diffusers.save_file(tmp_path / "a.safetensors", {"unet": Adapter(layers, {})})
    with pytest.raises(UserError, match="--family"):
        convert.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    convert.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", family="sdxl")
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q.alpha" in load_file(
        tmp_path / "b.safetensors"
    )


def test_a_language_adapter_has_one_format_only(tmp_path: Path) -> None:
    layers = {"model.layers.0.q_proj": layer(rank=4)}
    (tmp_path / "a").mkdir()
    peft.save(tmp_path / "a", Adapter(layers, {"task_type": "CAUSAL_LM"}), "base")
    with pytest.raises(UserError, match="language model"):
        convert.convert(tmp_path / "a", tmp_path / "b.safetensors")
    convert.convert(tmp_path / "a", tmp_path / "b", rank=2)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (config["r"], config["task_type"], config["base_model_name_or_path"]) == (2, "CAUSAL_LM", "base")


@given(
    rank=st.integers(1, 6),
    to=st.integers(1, 6),
    alpha=st.floats(0.5, 16),
    rslora=st.booleans(),
    conv=st.booleans(),
)
def test_a_smaller_rank_is_the_nearest(rank: int, to: int, alpha: float, rslora: bool, conv: bool) -> None:
    rng = torch.Generator().manual_seed(rank)
    shape, end = ((5, 3, 3), (7, rank, 1, 1)) if conv else ((9,), (7, rank))
    tensors = {
        "down": torch.randn(rank, *shape, generator=rng),
        "up": torch.randn(*end, generator=rng),
    }
    old = Layer("lora", rank, alpha, tensors)
    new = resized(Adapter({"m": old}, {}, rslora), to).layers["m"]
    assert new.rank == min(rank, to) == new.tensors["down"].shape[0]
    assert scale(new, rslora) == pytest.approx(scale(old, rslora))
    wanted = delta(old, rslora).flatten(1)
    left = torch.linalg.svdvals(wanted.double())[to:].norm()
    error = (delta(new, rslora).flatten(1) - wanted).double().norm()
    assert float(error) == pytest.approx(float(left), rel=1e-3, abs=1e-4 * float(wanted.norm()))


@pytest.mark.parametrize(
    "described",
    ["{", "[]", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": {"(": 1}}', '{"unet.alpha_pattern": 3}'],
)
def test_a_description_that_cannot_be_read_is_no_alpha(described: str, tmp_path: Path) -> None:
    path = diffusers.save_file(tmp_path / "a.safetensors", adapters())
    save_file(load_file(path), path, {"lora_adapter_metadata": described})
    with pytest.raises(UserError, match=r"cannot be read|no JSON object"):
        inspect_file.inspect(path)


def test_peft_takes_8_for_an_alpha_that_its_description_leaves_out(tmp_path: Path) -> None:
    path = diffusers.save_file(tmp_path / "a.safetensors", {"unet": adapters()["unet"]})
    save_file(load_file(path), path, {"lora_adapter_metadata": '{"unet.r": 2}'})
    assert inspect_file.inspect(path)["alpha"] == {"8": 3}


def test_resize_refuses_what_has_no_nearest(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "a.safetensors", dora=True)
    with pytest.raises(UserError, match="DoRA cannot be resized"):
        convert.convert(path, tmp_path / "b.safetensors", rank=1)
    assert convert.main([str(path), str(tmp_path / "b.safetensors"), "--rank", "0"]) == 3


NAMES = [
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    "lora_te_encoder_layers_0_self_attn_q_proj",
    "lora_unet_moon",
    "unet.mid_block.attentions.0.proj_in",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "base_model.model.model.layers.0.q_proj",
]
ENDS = [
    *("lora_down.weight", "lora_up.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_b"),
    *("lokr_w1", "lokr_w2", "lokr_w2_b", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "diff"),
]
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
METADATA = st.dictionaries(
    st.sampled_from(["lora_adapter_metadata", "ss_base_model_version", "software", "x"]),
    st.sampled_from(
        ["", "[]", "{", '{"unet.r": 2}', '{"unet.alpha_pattern": {"(": 1}}', "sdxl_base", "null"]
    ),
)


@given(
    keys=st.dictionaries(st.tuples(st.sampled_from(NAMES), st.sampled_from(ENDS)), SHAPES, max_size=6),
    metadata=METADATA,
    to=st.sampled_from(["kohya", "diffusers", "peft"]),
)
def test_strange_files_are_told_apart_or_refused_in_words(
    keys: dict[tuple[str, str], tuple[int, ...]], metadata: dict[str, str], to: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_file({f"{name}.{end}": torch.ones(shape) for (name, end), shape in keys.items()}, path, metadata)
        target = Path(folder) / "y"
        codes = inspect_file.main([str(path)]), convert.main([str(path), str(target), "--to", to])
        assert set(codes) <= {0, 3}
        assert target.exists() == (codes[1] == 0)
