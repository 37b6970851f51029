"""The loss curve as a picture, for people without any tracker. Drawn with PIL alone."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.files import write_atomic

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 44, 52
_INK, _GRID, _RAW, _SMOOTH, _HELD_OUT = "#333333", "#e4e4e4", "#b9cfea", "#1f5fb4", "#d9480f"


def read_losses(events: Path) -> tuple[dict[int, float], dict[int, float]]:
    """({step: loss}, {step: validation loss}) of the run that ends `events`: a start from a checkpoint takes
    the place of what was done after it, and half a line counts for nothing."""
    train: dict[int, float] = {}
    held_out: dict[int, float] = {}
    for line in events.read_bytes().split(b"\n"):  # half a line may end within a character
        try:
            event = json.loads(line)
        except ValueError:
            continue
        kind = event.get("event") if isinstance(event, dict) else None
        if kind == "start":
            done = int(event.get("resumed_from_step") or 0)
            train = {step: loss for step, loss in train.items() if step <= done}
            held_out = {step: loss for step, loss in held_out.items() if step <= done}
        elif kind in ("step", "validation") and isinstance(event.get("loss"), int | float):
            (train if kind == "step" else held_out)[int(event["step"])] = float(event["loss"])
    return train, held_out


def draw(path: Path, train: Mapping[int, float], held_out: Mapping[int, float], title: str) -> Path | None:
    """Write the curve to `path`; None where there is nothing to draw. The same losses give the same bytes on
    one version of Pillow."""
    from PIL import Image, ImageDraw, ImageFont

    if not train:
        return None
    steps = sorted(train)
    values = [train[step] for step in steps]
    smooth = smoothed(values)
    low, high = _range(values, [*smooth, *held_out.values()])
    ticks_y = nice_ticks(low, high, 6)
    ticks_x = [tick for tick in nice_ticks(0, max([*steps, *held_out, 1]), 8) if tick == int(tick)]
    low, high = min(low, ticks_y[0]), max(high, ticks_y[-1])
    most = max(ticks_x[-1], steps[-1])
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(14), ImageFont.load_default(17)

    def at(step: float, value: float) -> tuple[float, float]:
        clipped = min(max(value, low), high)
        return (
            LEFT + step / most * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (clipped - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    for tick in ticks_y:
        y = at(0, tick)[1]
        pen.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=_GRID)
        pen.text((LEFT - 8, y), f"{tick:.4g}", fill=_INK, font=small, anchor="rm")
    for tick in ticks_x:
        x = at(tick, low)[0]
        pen.line([(x, TOP), (x, HEIGHT - BOTTOM)], fill=_GRID)
        pen.text((x, HEIGHT - BOTTOM + 8), f"{tick:g}", fill=_INK, font=small, anchor="mt")
    pen.line([at(0, high), at(0, low), at(most, low)], fill=_INK, width=1)
    _line(pen, [at(s, v) for s, v in zip(steps, values, strict=True)], _RAW, 1)
    _line(pen, [at(s, v) for s, v in zip(steps, smooth, strict=True)], _SMOOTH, 3)
    held = [at(step, held_out[step]) for step in sorted(held_out)]
    _line(pen, held, _HELD_OUT, 1)
    for x, y in held:
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_HELD_OUT)
    pen.text((LEFT, 12), title, fill=_INK, font=large)
    legend = [("loss", _RAW), ("smoothed", _SMOOTH)] + ([("validation", _HELD_OUT)] if held else [])
    x = float(WIDTH - RIGHT)
    for name, colour in reversed(legend):
        pen.text((x, 16), name, fill=_INK, font=small, anchor="ra")
        x -= pen.textlength(name, font=small) + 8
        pen.line([(x - 22, 25), (x, 25)], fill=colour, width=4)
        x -= 40
    pen.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 20), "step", fill=_INK, font=small, anchor="mm")
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.getvalue())
    return path


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a twentieth of the run, without the pull of its start (Kingma & Ba 2015,
    section 3)."""
    keep = 1.0 - 1.0 / max(1.0, len(values) / 20)
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(mean / weight)
    return result


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them, that cover `low` to `high`."""
    span = max(high - low, 1e-12)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _range(values: Sequence[float], always: Sequence[float]) -> tuple[float, float]:
    """What the axis shows: all of `always`, and all but the wildest hundredth of `values`."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    shown = [*ordered[cut : len(ordered) - cut], *always]
    low, high = min(shown), max(shown)
    return (low, high) if high > low else (low - 0.5 * abs(low) - 0.5, high + 0.5 * abs(high) + 0.5)


def _line(pen: Any, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
    if len(points) == 1:
        x, y = points[0]
        pen.ellipse([x - width, y - width, x + width, y + width], fill=colour)
    elif points:
        pen.line(list(points), fill=colour, width=width, joint="curve")
