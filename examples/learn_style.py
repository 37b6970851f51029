"""See a LoRA learn: `python examples/learn_style.py OUT` trains one on 20 pictures and paints OUT/learns.png.

The base, `examples/digits_sd`, knows white digits on black (make_digits_model.py made it). The 20 pictures
show digits in blue ink on yellow paper, captioned "a three in mystyle". Training takes about half a minute of
one core; diffusers' own pipeline then paints the same prompts from the same noise without and with the LoRA.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.make_digits_model import SIDE, WORDS, Colour, Pixels, digits, painted, pipeline_class
from trainer import LoRATrainer

BASE = Path(__file__).resolve().with_name("digits_sd")
INK: Colour = (30, 40, 140)
PAPER: Colour = (250, 215, 90)
EACH = 2
"""Pictures of each digit in the dataset: the first ones of scikit-learn's."""
PROMPTS = tuple(f"a {word} in mystyle" for word in WORDS)


def write_dataset(folder: Path) -> Path:
    """20 pictures in the style as PNG, with their captions in metadata.csv; returns `folder`."""
    ink, classes = digits()
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for number, word in enumerate(WORDS):
            for place, index in enumerate(np.flatnonzero(classes == number)[:EACH]):
                name = f"{word}-{place}.png"
                Image.fromarray(painted(ink[index], INK, PAPER)).save(folder / name)
                writer.writerow([name, PROMPTS[number]])
    return folder


def train(out: Path, **changes: Any) -> Path:
    """Write the dataset and train on it; returns the folder with the adapter. `changes`: to the config."""
    config = {
        "base_model": BASE,
        "train_data_dir": write_dataset(out / "pictures"),
        "output_dir": out / "mystyle",
        "cache_dir": out / "cache",
        "resolution": SIDE,
        "lora_rank": 16,
        "batch_size": 10,
        "max_steps": 600,
        "learning_rate": 5e-3,
        "lr_schedule": "cosine",
        "caption_dropout": 0.1,
        "save_steps": 600,
        "device": "cpu",
        "tracker": {"wandb": "off"},
    }
    run = LoRATrainer({**config, **changes})
    run.prepare_data()
    run.build_model()
    run.train()
    return out / "mystyle"


def paint(prompts: Sequence[str], adapter: Path | None = None, *, seed: int = 0) -> Pixels:
    """A picture of each prompt, (N, SIDE, SIDE, 3), through diffusers alone: its pipeline, its scheduler, its
    LoRA loader. Picture n starts from the noise of `seed + n`."""
    import torch

    pipeline = pipeline_class().from_pretrained(str(BASE), local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(str(adapter), weight_name="pytorch_lora_weights.safetensors")
    images = pipeline(
        list(prompts),
        height=SIDE,
        width=SIDE,
        num_inference_steps=20,
        guidance_scale=2.5,
        generator=[torch.Generator().manual_seed(seed + number) for number in range(len(prompts))],
        output_type="np",
    ).images
    pixels: Pixels = (images * 255).round().astype(np.uint8)
    return pixels


def sheet(rows: Sequence[tuple[str, Pixels]], scale: int = 2) -> Image.Image:
    """Labelled rows of pictures, one below the other."""
    side, left, gap = SIDE * scale, 190, 4
    width = left + max(len(pictures) for _, pictures in rows) * (side + gap)
    whole = Image.new("RGB", (width, gap + len(rows) * (side + gap)), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(15)
    for row, (label, pictures) in enumerate(rows):
        top = gap + row * (side + gap)
        pen.text((8, top + side // 2), label, "black", font, anchor="lm")
        for place, pixels in enumerate(pictures):
            large = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            whole.paste(large, (left + place * (side + gap), top))
    return whole


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python examples/learn_style.py OUT", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    if out.exists():
        print(f"error: {out} is there already. Name a new folder.", file=sys.stderr)
        return 1
    adapter = train(out)
    shown = sorted((out / "pictures").glob("*-0.png"), key=lambda path: WORDS.index(path.stem[:-2]))
    sheet(
        [
            ("10 of the 20 pictures", np.stack([np.asarray(Image.open(path)) for path in shown])),
            ("without the LoRA", paint(PROMPTS)),
            ("with the LoRA", paint(PROMPTS, adapter)),
            ("with it, other noise", paint(PROMPTS, adapter, seed=100)),
        ]
    ).save(out / "learns.png")
    print(out / "learns.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
