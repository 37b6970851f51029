"""Images a second of a LoRA training on Stable Diffusion's real architecture (random weights), side by side
with a straightforward diffusers and peft loop that has the VAE and the text encoder in its step.

    python benchmarks/sd_speed.py                                  # CPU: SD 1.5, 256 pixels, batch 1, float32
    python benchmarks/sd_speed.py --rounds 1 --steps 60            # CUDA: 512 pixels, batch 32, bf16
    python benchmarks/sd_speed.py --family sdxl --batch 8          # CUDA: ours alone, 1024 pixels

Each contestant runs in its own process, in turns, on the same pictures, rank, modules, batch and numerics.
Loading, and filling our cache (which is told apart), are not counted; the first steps are warm-up. The MFU is
against the counted FLOPs of one picture, forward and backward (2 x MAC, torch's flop counter).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RANK, RATE = 16, 1e-4
TFLOP = {("sd15", 512): 1.747, ("sdxl", 1024): 14.35}
"""Of one picture with an adapter of rank 16 on the modules that kohya trains (192, 722)."""


class Marks:
    """When the steps began: seconds of wall clock and of this process's CPU time."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self) -> None:
        """A step begins. Waits for an accelerator only where counting begins and ends."""
        if len(self.wall) in (self.warmup, self.steps - 1):
            _synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def result(self, losses: Sequence[float], prepare_s: float) -> dict[str, Any]:
        count = self.steps - 1 - self.warmup
        return {
            "wall_s": (self.wall[-1] - self.wall[self.warmup]) / count,
            "cpu_s": (self.cpu[-1] - self.cpu[self.warmup]) / count,
            "losses": list(losses),
            "prepare_s": prepare_s,
            "peak_bytes": _peak_bytes(),
        }


def ours(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """LoRATrainer, as a user's config has it."""
    from trainer import LoRATrainer

    trainer = LoRATrainer(
        {
            "base_model": root / "base",
            "train_data_dir": root / "pictures",
            "output_dir": root / "out",
            "cache_dir": root / "cache",
            "resolution": args.side,
            "lora_rank": RANK,
            "learning_rate": RATE,
            "batch_size": args.batch,
            "max_steps": args.steps,
            "save_steps": 1_000_000,
            "resume": "never",
            "device": args.device,
            "compile": "on" if args.compile else "off",
            "tracker": {"wandb": "off"},
        }
    )
    began = time.perf_counter()
    trainer.prepare_data()
    prepare_s = time.perf_counter() - began
    trainer.build_model()
    marks, losses = Marks(args.warmup, args.steps), []
    family: Any = trainer.family
    loss = family.loss

    def marked(batch: Sequence[int], rngs: Sequence[Any], *, training: bool = True) -> Any:
        marks.step()
        found = loss(batch, rngs, training=training)
        losses.append(found.detach() / len(batch))
        return found

    family.loss = marked
    trainer.train()
    return marks.result([float(value) for value in losses], prepare_s)


def theirs(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """What diffusers' text-to-image LoRA example does in a step, without its command line."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from PIL import Image
    from torch.nn import functional
    from transformers import CLIPTextModel, CLIPTokenizer

    from trainer.models.sd import TARGETS

    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = str(root / "base")
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    text: Any = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=dtype)
    text.to(device)
    vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=dtype).to(device)
    unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=dtype).to(device)
    noises: Any = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    for part in (text, vae, unet):
        part.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    cast_training_params(unet, dtype=torch.float32)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    files = sorted((root / "pictures").glob("*.png"))
    pixels = [
        torch.from_numpy(np.asarray(Image.open(f), np.float32).transpose(2, 0, 1) / 127.5 - 1) for f in files
    ]
    words = [file.with_suffix(".txt").read_text() for file in files]
    options: Any = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = tokenizer(words, max_length=77, **options).input_ids
    torch.manual_seed(0)
    order = torch.Generator().manual_seed(0)
    marks, losses = Marks(args.warmup, args.steps), []
    for _ in range(args.steps):
        marks.step()
        chosen = torch.randint(len(files), (args.batch,), generator=order)
        pictures = torch.stack([pixels[int(number)] for number in chosen]).to(device, dtype)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
                states = text(ids[chosen].to(device)).last_hidden_state
            noise = torch.randn_like(latents)
            steps = torch.randint(0, 1000, (args.batch,), device=device)
            predicted = unet(noises.add_noise(latents, noise, steps), steps, states).sample
        loss = functional.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return marks.result([float(value) for value in losses], 0.0)


def make_base(folder: Path, family: str) -> None:
    """A pipeline in the published sizes with small random weights, as half floats."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from trainer.models.clip_vocab import clip_tokenizer, vocabulary_file
    from trainer.models.sd_single_file import CONFIGS

    shipped = CONFIGS / family
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 22, generator=rng).half()
    index: dict[str, Any] = {"scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "scheduler").mkdir(parents=True)
    for file in (shipped / "scheduler").iterdir():
        (folder / "scheduler" / file.name).write_text(file.read_text())
    for part in sorted(p.name for p in shipped.iterdir() if p.name != "scheduler"):
        values = json.loads((shipped / part / "config.json").read_text())
        kinds: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config,
            "vae": AutoencoderKL.from_config,
            "text_encoder": lambda v: CLIPTextModel(CLIPTextConfig(**v)),
            "text_encoder_2": lambda v: CLIPTextModelWithProjection(CLIPTextConfig(**v)),
        }
        with torch.device("meta"):
            model = kinds[part](values).half()
        model = model.to_empty(device="cpu")
        for name, tensor in model.state_dict().items():
            scale = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            flat, place = tensor.flatten(), 0
            if not tensor.is_floating_point():
                tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))
                continue
            while place < len(flat):
                end = min(len(flat), place + len(noise))
                flat[place:end] = scale + noise[: end - place] * 0.02
                place = end
            tensor.copy_(flat.view_as(tensor))
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name == "position_ids":
                    setattr(module, name, torch.arange(buffer.shape[-1])[None])
        model.save_pretrained(folder / part)
        index[part] = ["transformers" if part.startswith("text") else "diffusers", type(model).__name__]
        if part.startswith("text"):
            tokens = part.replace("text_encoder", "tokenizer")
            clip_tokenizer(vocabulary_file()).save_pretrained(folder / tokens)
            index[tokens] = ["transformers", "CLIPTokenizer"]
    name = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, **index}))


def make_pictures(folder: Path, side: int, count: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(
            folder / f"{number:02d}.png"
        )
        (folder / f"{number:02d}.txt").write_text(f"a picture of colours, number {number}")


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(name: str, args: argparse.Namespace, root: Path) -> dict[str, Any]:
    flags = [
        f"--{key}={getattr(args, key)}" for key in ("family", "side", "batch", "steps", "warmup", "device")
    ]
    command = [sys.executable, __file__, "--child", name, "--root", str(root), *flags]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command + (["--compile"] if args.compile else []),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _say(name: str, best: dict[str, Any], args: argparse.Namespace) -> None:
    import torch

    rate = args.batch / best["wall_s"]
    counted = best["losses"][args.warmup :]
    line = (
        f"{name:<7} {rate:9.3f} images/s  {best['wall_s']:8.3f} s/step  {best['cpu_s']:8.3f} CPU s/step  "
        f"peak {best['peak_bytes'] / 2**30:6.2f} GiB  loss {statistics.mean(counted):.4f}"
    )
    if args.device != "cpu" and (args.family, args.side) in TFLOP:
        from trainer.flops import peak_flops

        peak = peak_flops(torch.device(args.device), torch.bfloat16)
        if peak:
            line += f"  MFU {rate * TFLOP[args.family, args.side] * 1e12 / peak:.1%}"
    print(line)


def main() -> int:
    """Run the contestants in turns and print the figures; 0."""
    import torch

    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=["sd15", "sdxl"], default="sd15")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--side", type=int, help="256 on the CPU; 512, or 1024 for sdxl, on CUDA")
    parser.add_argument("--batch", type=int, default=32 if cuda else 1)
    parser.add_argument("--steps", type=int, default=40 if cuda else 5)
    parser.add_argument("--warmup", type=int, default=10 if cuda else 1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--child", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.side = args.side or (256 if args.device == "cpu" else 1024 if args.family == "sdxl" else 512)
    if args.child:
        print(json.dumps((ours if args.child == "ours" else theirs)(args, args.root)))
        return 0
    with tempfile.TemporaryDirectory(prefix="lora-ops-sd-speed-") as name:
        root = Path(name)
        make_base(root / "base", args.family)
        make_pictures(root / "pictures", args.side, max(4, 2 * args.batch))
        contestants = ["ours"] if args.family == "sdxl" else ["theirs", "ours"]
        found: dict[str, list[dict[str, Any]]] = {contestant: [] for contestant in contestants}
        for _ in range(args.rounds):
            for contestant in contestants:
                found[contestant].append(_child(contestant, args, root))
    print(f"{args.family}, {args.side} x {args.side}, batch {args.batch}, rank {RANK}, on {args.device}")
    best = {key: min(results, key=lambda result: result["wall_s"]) for key, results in found.items()}
    for contestant in contestants:
        _say(contestant, best[contestant], args)
    print(f"filling our cache took {found['ours'][0]['prepare_s']:.1f} s, once")
    if len(best) > 1:
        walls = best["theirs"]["wall_s"] / best["ours"]["wall_s"]
        cpus = best["theirs"]["cpu_s"] / best["ours"]["cpu_s"]
        print(f"ratio {walls:.2f} by wall clock, {cpus:.2f} by CPU time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
