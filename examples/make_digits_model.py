"""Train a small Stable Diffusion that paints digits: `python examples/make_digits_model.py OUT`.

Real diffusers and transformers classes and real pictures: the 1,797 handwritten digits of scikit-learn
(from UCI's Optical Recognition of Handwritten Digits), white on black, prompted "a zero" to "a nine". One
core needs about two minutes; the same versions on the same kind of processor give the same bytes.
`examples/digits_sd` is what it wrote. An OUT that is there already is left as it is. What is small here,
and why that does:

- VAE: two colours a picture, so 4 x 4 pixels become one place of 4 numbers. It learns from digits in all
  colours, so that a style which the UNet never painted can be decoded.
- UNet: two levels, of 32 and 64 channels, with cross-attention; it predicts v (Salimans & Ho 2022).
- Text: CLIP of width 32 over bytes. Half of the captions end in a made-up word ("a three in kqvz"), so that a
  word which it does not know changes nothing.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from trainer.files import whole_folder
from trainer.models.clip_vocab import clip_tokenizer
from trainer.quiet import quiet

SIDE = 32
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VAE_STEPS, UNET_STEPS, BATCH = 250, 1000, 32
DROPOUT = 0.1
"""The share of empty captions, for guidance (Ho & Salimans 2022)."""

Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """scikit-learn's digits: how much ink each pixel has, (1797, SIDE, SIDE) in 0..1, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = [
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for image in found.images
    ]
    return np.stack([np.asarray(each, np.float32) / 255 for each in grey]), found.target.astype(np.int64)


def painted(ink: NDArray[np.float32], colour: Colour = WHITE, paper: Colour = BLACK) -> Pixels:
    """`ink` (..., SIDE, SIDE) as RGB pictures (..., SIDE, SIDE, 3), the strokes in `colour` on `paper`."""
    share = ink[..., None]
    mixed = share * np.array(colour, np.float32) + (1 - share) * np.array(paper, np.float32)
    return mixed.round().astype(np.uint8)


def pipeline_class() -> Any:
    """diffusers' StableDiffusionPipeline, without the libraries' words about torchvision while it loads."""
    for name in ("transformers", "diffusers"):
        importlib.import_module(name)
    quiet()
    return importlib.import_module("diffusers").StableDiffusionPipeline


def make(out: Path) -> None:
    """Train the model and write it as a diffusers folder, in float16."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    torch.set_num_threads(1)  # with more, sums are added in another order
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ink, classes = digits()
    vae = _vae()
    _train_vae(vae, ink, rng)
    latents = _latents(vae, painted(ink))
    scheduler = DDIMScheduler(
        beta_schedule="linear",
        clip_sample=False,
        prediction_type="v_prediction",
        steps_offset=1,
    )
    tokenizer = clip_tokenizer()
    text, unet = _text(tokenizer), _unet()
    _train_unet(unet, text, tokenizer, scheduler.alphas_cumprod, latents, torch.from_numpy(classes), rng)
    pipeline = pipeline_class()(
        vae=vae.half(),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)


def _vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=SIDE,
    )
    with torch.no_grad():
        _start_as_scaling(vae)
    return vae


def _start_as_scaling(vae: Any) -> None:
    """Let an untrained VAE pass the picture on, smaller and larger again, in place of noise: a few hundred
    steps are then enough."""
    for name, layer in vae.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if name.endswith("conv2"):  # the end of a residual branch
            nn.init.zeros_(layer.weight)
            continue
        whole = torch.empty_like(layer.weight)
        layer.weight.mul_(0.3).add_(nn.init.dirac_(whole))
        if layer.bias is not None and layer.out_channels == 16 and not name.endswith("conv1"):
            # Half of the channels are constant, or each normalisation would take the brightness away.
            layer.weight[8:] = 0
            layer.bias[8:] = torch.tensor([2.0, -2.0] * 4)
    # The posterior is narrow: exp(-6 / 2) = 0.05.
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = -6.0


def _text(tokenizer: Any) -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        initializer_factor=5.0,  # made for much wider models: letters of width 32 would all look the same
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _unet() -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def _train_vae(vae: Any, ink: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Digits in two colours each, the plain ones among them; then the latents' scale is measured."""
    optimizer, schedule = _optimizer(vae.parameters(), 3e-3, VAE_STEPS)
    for step in range(VAE_STEPS):
        images = _in_colours(ink[rng.integers(len(ink), size=16)], rng)
        posterior = vae.encode(images).latent_dist
        error = functional.mse_loss(vae.decode(posterior.sample()).sample, images)
        _step(error + 1e-4 * posterior.kl().mean() / 256, optimizer, schedule)
        _say("vae", step, VAE_STEPS, error)
    vae.eval().requires_grad_(False)
    many = vae.encode(_in_colours(ink[:256], rng)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(float(1 / many.std()), 4))


def _in_colours(ink: NDArray[np.float32], rng: np.random.Generator) -> Tensor:
    pictures = [
        painted(each) if number % 4 == 0 else painted(each, _colour(rng), _colour(rng))
        for number, each in enumerate(ink)
    ]
    return _as_images(np.stack(pictures))


def _colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(256, size=3))
    return red, green, blue


def _as_images(pictures: Pixels) -> Tensor:
    """(N, 3, SIDE, SIDE) in -1..1."""
    return torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def _latents(vae: Any, pictures: Pixels) -> Tensor:
    with torch.no_grad():
        parts = [vae.encode(_as_images(part)).latent_dist.mean for part in np.array_split(pictures, 30)]
    return torch.cat(parts) * float(vae.config.scaling_factor)


def _train_unet(
    unet: Any,
    text: Any,
    tokenizer: Any,
    alphas: Tensor,
    latents: Tensor,
    classes: Tensor,
    rng: np.random.Generator,
) -> None:
    """Denoise, with captions; the text encoder learns as well."""
    unet.train()
    text.train()
    both = nn.ModuleList([unet, text])
    optimizer, schedule = _optimizer(both.parameters(), 2e-3, UNET_STEPS)
    for step in range(UNET_STEPS):
        chosen = torch.from_numpy(rng.integers(len(latents), size=BATCH))
        # Every caption of a step is encoded once: ten plain ones, ten with a made-up word, the empty one.
        captions = [f"a {word}" for word in WORDS]
        captions += [f"a {word} in {_made_up(rng)}" for word in WORDS] + [""]
        which = classes[chosen] + len(WORDS) * torch.from_numpy(rng.integers(2, size=BATCH))
        which[torch.from_numpy(rng.random(BATCH) < DROPOUT)] = len(captions) - 1
        ids = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        states = text(ids).last_hidden_state[which]
        clean, noise = latents[chosen], torch.randn(BATCH, *latents.shape[1:])
        times = torch.randint(len(alphas), (BATCH,))
        signal = alphas[times].sqrt().view(-1, 1, 1, 1)
        spread = (1 - alphas[times]).sqrt().view(-1, 1, 1, 1)
        predicted = unet(signal * clean + spread * noise, times, states).sample
        error = functional.mse_loss(predicted, signal * noise - spread * clean)
        _step(error, optimizer, schedule)
        _say("unet", step, UNET_STEPS, error)
    unet.eval()
    text.eval()


def _made_up(rng: np.random.Generator) -> str:
    return "".join(chr(ord("a") + int(letter)) for letter in rng.integers(26, size=rng.integers(4, 9)))


def _optimizer(parameters: Any, rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    schedule.step()


def _say(what: str, step: int, steps: int, error: Tensor) -> None:
    if (step + 1) % 100 == 0:
        print(f"{what} {step + 1}/{steps}: loss {float(error.detach()):.4f}", flush=True)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python examples/make_digits_model.py OUT", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    if (out / "model_index.json").is_file():
        print(out)
        return 0
    with whole_folder(out) as made:
        make(made)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
