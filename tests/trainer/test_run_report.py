"""What a run tells: trackers, the loss curve, the card, FLOPs; and a compiler that may fail."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tests.trainer.runs import run
from trainer import curve, flops
from trainer.compiled import Compiled, is_compile_error
from trainer.config import config_from
from trainer.tracking import Trackers

Make = Callable[..., dict[str, Any]]


# --- curve ---


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"event": kind, **fields})


def test_what_was_done_again_after_a_kill_counts_once(tmp_path: Path) -> None:
    lines = [
        event("start", resumed_from_step=0),
        event("step", step=9, loss=9.0),
        event("start", resumed_from_step=0),
        *(event("step", step=step, loss=float(step)) for step in (1, 2, 3)),
        event("validation", step=3, loss=0.3),
        '{"event": "step", "st',
        event("start", resumed_from_step=1),
        event("step", step=2, loss=2.0),
        event("step", step=3, loss=None),
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert curve.read_losses(tmp_path / "events.jsonl") == ({1: 1.0, 2: 2.0}, {})


def test_the_curve_is_a_picture_of_the_losses(tmp_path: Path) -> None:
    train = {step: 1.0 / step for step in range(1, 200)}
    path = curve.draw(tmp_path / "a.png", train, {100: 0.5}, "x")
    assert path is not None
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (curve.HEIGHT, curve.WIDTH, 3)
    orange = (np.abs(pixels.astype(int) - [0xD9, 0x48, 0x0F]).sum(axis=2) < 30).nonzero()
    blue = (np.abs(pixels.astype(int) - [0x1F, 0x5F, 0xB4]).sum(axis=2) < 30).nonzero()
    point = (orange[1] > curve.LEFT) & (orange[0] > curve.TOP)
    middle = curve.LEFT + (curve.WIDTH - curve.LEFT - curve.RIGHT) / 2
    assert abs(orange[1][point].mean() - middle) < 8, "step 100 of 200"
    left, right = (
        blue[0][(blue[0] > curve.TOP) & (blue[1] > a) & (blue[1] < b)].mean()
        for a, b in ((100, 140), (700, 740))
    )
    assert left < right, "the loss falls"
    again = curve.draw(tmp_path / "b.png", train, {100: 0.5}, "x")
    assert again is not None
    assert again.read_bytes() == path.read_bytes()
    assert curve.draw(tmp_path / "c.png", {}, {}, "x") is None


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 10))
def test_ticks_cover_the_range(low: float, span: float, count: int) -> None:
    ticks = curve.nice_ticks(low, low + span, count)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-9 * max(abs(low), step)
    assert ticks[-1] >= low + span - 1e-6 * step - 1e-9 * abs(low)
    assert len(ticks) <= count + 3


# --- card ---


def test_the_card_of_a_language_model_counts_rows_and_quotes_answers(
    text_config: Make, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    trainer = run(text_config(output_dir=out, packing=True, sample_prompts=["hi", "bye"], sample_tokens=3))
    assert trainer.samples == 1, "the four rows are packed"
    card = (out / "model_card.md").read_text()
    assert "The dataset has 4 samples." in card
    said = json.loads(next(out.glob("samples/*/generations.json")).read_text())
    answer = said[1]["answer"].strip().replace("\n", "\n> ")
    assert f"**bye**\n\n> {answer}\n" in card
    assert '"prompt"' not in card


def test_the_card_tells_config_and_lineage_and_no_date(world: Make, tmp_path: Path) -> None:
    config = world(output_dir=tmp_path / "a" / "mine", trigger_word="zorv", sample_prompts=["a picture"])
    run(config)
    card = (tmp_path / "a" / "mine" / "model_card.md").read_text()
    start = json.loads((tmp_path / "a" / "mine" / "events.jsonl").read_text().splitlines()[0])
    for wanted in (
        "# mine",
        "Trigger word: `zorv`",
        "![loss](loss_curve.png)",
        start["base_model"]["digest"],
        start["dataset_digest"],
        start["config_hash"],
        f"| torch | `{torch.__version__}` |",
        "lora_rank: 2",
    ):
        assert wanted in card
    assert str(tmp_path) not in card
    again = world(output_dir=tmp_path / "b" / "mine", trigger_word="zorv", sample_prompts=["a picture"])
    run(again)
    assert (tmp_path / "b" / "mine" / "model_card.md").read_text() == card


# --- trackers ---


def fake_tensorboard(monkeypatch: pytest.MonkeyPatch, writer: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: object() if name == "tensorboard" else find(name, *a)
    )
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def test_tensorboard_gets_numbers_and_pictures(
    text_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            said.append(("open", folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            said.append((name, value, step))

        def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
            said.append((name, pixels.shape, step, dataformats))

        def close(self) -> None:
            said.append(("close",))

    fake_tensorboard(monkeypatch, Writer)
    config = text_config(tracker={"wandb": "off", "tensorboard": "on"}, max_steps=2)
    run(config)
    assert said[0] == ("open", str(config["output_dir"] / "tensorboard"), 1)
    assert {"loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "memory_bytes"} <= {
        s[0] for s in said
    }
    assert said[-1] == ("close",)
    Image.new("L", (4, 6)).save(tmp_path / "0.png")
    trackers = Trackers(config_from(config), lambda text: None, step=2)
    assert said[-1][2] == 3, "what a resumed run does again takes the place of what it logged"
    trackers.samples(3, [tmp_path / "0.png", tmp_path / "0.txt"])
    assert said[-1] == ("samples/0", (6, 4, 3), 3, "HWC")


def test_a_broken_or_missing_tensorboard_is_a_warning(
    text_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: str, purge_step: int) -> None:
        raise RuntimeError("no such file system")

    fake_tensorboard(monkeypatch, broken)
    run(text_config(tracker={"wandb": "off", "tensorboard": "on"}, max_steps=1))
    assert "tensorboard RuntimeError: no such file system" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    said: list[str] = []
    Trackers(config_from(text_config(tracker={"wandb": "off", "tensorboard": "on"})), said.append)
    assert "tensorboard is not installed" in said[0]


# --- FLOPs ---


def test_flops_are_counted_once_a_shape_and_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert flops.FlopMeter(cpu, torch.bfloat16).peak is None
    monkeypatch.setattr(flops, "peak_flops", lambda *_: 1e12)
    meter = flops.FlopMeter(cpu, torch.bfloat16)
    weight = torch.ones(8, 4, requires_grad=True)
    for rows in (2, 2, 3):
        with meter.micro_batch(("a", rows)):
            (torch.ones(rows, 8) @ weight).sum().backward()
    assert meter.take() == 2 * 8 * 4 * (2 + 2 + 3) * 2
    assert meter.take() == 0
    names = [part for part, _ in flops.PEAKS]
    for number, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:number]), f"{name} would never be found"


# --- compile ---


def test_what_cannot_be_compiled_runs_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    def no_compiler(function: Any, **_: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise Unsupported("cannot trace this")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    said: list[str] = []
    net = nn.Linear(2, 2)
    wanted = net(torch.ones(1, 2))
    compiled = Compiled([net], said.append)
    assert torch.equal(net(torch.ones(1, 2)), wanted)
    assert torch.equal(net(torch.ones(1, 2)), wanted)
    assert len(said) == 1
    assert "cannot trace this" in said[0]
    assert "goes on without it" in said[0]
    assert not compiled.gave_up(Unsupported("again")), "it has given up before"


def test_a_compiler_that_fails_in_the_backward_pass_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    calls: list[int] = []

    def compiler(function: Any, **_: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(1)
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    said: list[str] = []
    net = nn.Linear(2, 2)
    compiled = Compiled([net], said.append)
    net(torch.ones(1, 2))
    assert calls == [1]
    assert not compiled.gave_up(ValueError("mine"))
    cause = RuntimeError("backward failed")
    cause.__cause__ = Unsupported("lowering")
    assert is_compile_error(cause)
    assert compiled.gave_up(cause)
    net(torch.ones(1, 2))
    assert calls == [1]


def test_a_module_that_raises_is_not_the_compilers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    net = nn.Linear(2, 2)
    Compiled([net], pytest.fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.ones(1, 3))


def test_a_line_that_a_kill_cut_within_a_letter_costs_no_curve(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    torn = '{"event": "failure", "message": "Bilder für'.encode()[:-2]
    whole = [event("step", step=1, loss=2.0), event("start"), event("step", step=1, loss=3.0)]
    lines = [line.strip().encode() for line in whole]
    path.write_bytes(b"\n".join([lines[0], torn, b"7", *lines[1:], b""]))
    assert curve.read_losses(path) == ({1: 3.0}, {})
