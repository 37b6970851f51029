"""What Stable Diffusion trains on: texts, masks, weights, schedules; and the pains that others have there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tests.trainer.family_contract import all_parameters, family_from, generator, moved, prepared
from trainer.data.variants import View
from trainer.errors import ConfigError, ModelError
from trainer.losses import elementwise
from trainer.models import sd, sd_convs
from trainer.models.sd_parts import FolderParts, read_config
from trainer.models.sd_single_file import CONFIGS
from trainer.models.sdxl import time_ids

Make = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.models
V = {"prediction_type": "v_prediction"}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """One opaque picture, one whose right half is transparent."""
    folder = tmp_path / "one"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 255, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    pixels[:, 16:, 3] = 0
    Image.fromarray(pixels).save(folder / "b.png")
    (folder / "a.txt").write_text("a red house")
    (folder / "b.txt").write_text("a blue tree")
    return folder


def loss(family: Any, index: int, seed: int = 1, *, training: bool = True) -> float:
    return float(family.loss([index], [generator(seed)], training=training).detach())


def test_pain_2_adapters_and_losses_are_float32_whatever_the_base_is(images_config: Make) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        family: Any = family_from(images_config(train_text_encoder=True))
        family.setup.dtype = dtype
        report = prepared(images_config())[2]
        family.prepare(report.items, report)
        groups = family.build()
        moved(groups)
        assert family.unet.conv_in.weight.dtype == dtype
        assert not family.autocast
        found = family.loss([0], [generator(1)])
        assert found.dtype == torch.float32
        found.backward()
        for name, parameter in all_parameters(groups).items():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert torch.isfinite(parameter.grad).all()


def test_pain_3_the_vae_is_float32_and_its_nan_is_named_not_cached(
    images_config: Make, tmp_path: Path, tiny_sd: Path
) -> None:
    family: Any = family_from(images_config())
    family.setup.dtype = torch.float16
    assert {p.dtype for p in family.parts.load_vae().parameters()} == {torch.float32}
    broken = shutil.copytree(tiny_sd, tmp_path / "broken")
    vae = family.parts.load_vae()
    vae.encoder.conv_in.weight.data[0] = float("nan")
    vae.save_pretrained(broken / "vae")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"The VAE makes no numbers of 0\.png"):
            prepared(images_config(base_model=broken))


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_pain_12_the_last_step_of_zero_terminal_snr_has_a_finite_loss(
    gamma: float | None, images_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = images_config(zero_terminal_snr=True, min_snr_gamma=gamma, **V)
    family, _, _ = prepared(config)
    family.build()
    assert isinstance(family, sd.StableDiffusion)
    assert float(family.alphas[-1]) == 0.0
    assert float(family.alphas[0]) == pytest.approx(1 - 0.00085, abs=1e-6)
    family.alphas = family.alphas[-1:]  # the only step that can be drawn
    found = family.loss([0], [generator(1)])
    found.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(found)
    if gamma is not None:
        assert float(found.detach()) == 0.0


def test_pain_12_predicting_epsilon_with_zero_terminal_snr_is_refused(images_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"zero_terminal_snr.*predicts epsilon.*v_prediction"):
        family_from(images_config(zero_terminal_snr=True))


def test_the_schedule_is_that_of_diffusers_with_zero_terminal_snr(images_config: Make) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    family: Any = family_from(images_config(zero_terminal_snr=True, **V))
    theirs: Any = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    torch.testing.assert_close(family.alphas, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_pain_13_a_dropped_caption_is_the_empty_one_and_never_in_the_cache(
    images_config: Make, one: Path
) -> None:
    plain: Any = prepared(images_config(train_data_dir=one))[0]
    dropping: Any = prepared(images_config(train_data_dir=one, caption_dropout=1.0))[0]
    assert torch.equal(plain.embedded["a red house"].states, dropping.embedded["a red house"].states)
    assert "" in dropping.embedded
    seen: list[list[str]] = []
    text = dropping.text
    dropping.text = lambda captions: seen.append(list(captions)) or text(captions)
    dropping.build()
    loss(dropping, 0)
    loss(dropping, 0, training=False)
    assert seen == [[""], ["a red house"]]


def test_pain_13_shuffled_captions_are_all_cached(images_config: Make, one: Path) -> None:
    (one / "a.txt").write_text("a house, red, tall, old, by a lake")
    family: Any = prepared(images_config(train_data_dir=one, caption_shuffle=True, keep_tokens=1))[0]
    captions = family.samples[0].captions
    assert len(captions) > 1
    assert set(captions) <= set(family.embedded)
    assert all(caption.startswith("a house") for caption in captions)
    assert len({float(family.embedded[caption].states.sum()) for caption in captions}) == len(captions)


def test_pain_14_long_captions_are_counted_and_chunks_take_them(images_config: Make, one: Path) -> None:
    long = "x" * 100
    (one / "a.txt").write_text(long)
    family: Any
    family, _, report = prepared(images_config(train_data_dir=one))
    told = [warning for warning in report.warnings if "tokens" in warning]
    assert len(told) == 1
    assert "1 of 2 captions are longer than 75 tokens" in told[0]
    assert "max_token_length: 225" in told[0]
    wide: Any
    wide, _, report = prepared(images_config(train_data_dir=one, max_token_length=150))
    assert not [warning for warning in report.warnings if "tokens" in warning]
    assert wide.embedded[long].states.shape == (1, 2 * 77, 32)
    torch.testing.assert_close(wide.embedded[long].states[:, :77], family.embedded[long].states)
    tokens = wide.texts.tokenize(long).ids[0]
    bos, eos = int(tokens[0, 0]), int(tokens[0, -1])
    assert tokens[:, 0].tolist() == [bos, bos]
    assert (tokens == eos).any(dim=1).all()
    assert int((tokens[0] == eos).sum()) == 1
    family.build()
    wide.build()
    assert loss(wide, 0) != loss(family, 0)


def test_pain_21_a_sample_that_fails_leaves_the_training_as_it_was(
    images_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    family: Any = prepared(images_config(sample_steps=2, sample_prompts=["a house"]))[0]
    moved(family.build())
    before = loss(family, 0)
    seen: list[Any] = []
    load = FolderParts.load_vae

    def full(latent: Any) -> Any:
        raise MemoryError("full")

    def watched(self: FolderParts) -> Any:
        vae = load(self)
        monkeypatch.setattr(vae, "decode", full)
        seen.append(vae)
        return vae

    monkeypatch.setattr(FolderParts, "load_vae", watched)
    with pytest.raises(MemoryError, match="full"):
        family.sample(["a house"], tmp_path, 1)
    assert seen[0].use_slicing
    assert family.unet.training
    assert not list(tmp_path.glob("*.png"))
    assert loss(family, 0) == before
    assert all(parameter.grad is None for parameter in family.unet.parameters())


def test_a_sample_follows_prompt_seed_guidance_and_adapter(images_config: Make, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = images_config(sample_steps=3, sample_guidance=4, sample_prompts=["a house"], resolution=64)
    family: Any = prepared(config)[0]
    family.build()
    found = family.sampler.image("a house", 5)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(str(config["base_model"]), local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a house",
        num_inference_steps=3,
        guidance_scale=4.0,
        height=64,
        width=64,
        generator=generator(5),
        output_type="np",
    ).images[0]
    assert np.abs(found / 255.0 - theirs).max() < 0.02
    assert np.array_equal(found, family.sampler.image("a house", 5))
    for other in (family.sampler.image("a tree", 5), family.sampler.image("a house", 6)):
        assert not np.array_equal(found, other)
    moved([sd.Group("unet", 1.0, dict(_trainable(family.unet)))])
    assert not np.array_equal(found, family.sampler.image("a house", 5))


def _trainable(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def test_a_mask_says_where_the_loss_counts(images_config: Make, one: Path) -> None:
    def losses(**changes: Any) -> list[float]:
        family: Any = prepared(images_config(train_data_dir=one, background="black", **changes))[0]
        family.build()
        return [loss(family, index) for index in (0, 1)]

    opaque, half = losses()
    assert losses(masked_loss="alpha", unmasked_weight=1.0) == [opaque, half]
    masked = losses(masked_loss="alpha")
    assert masked[0] == opaque
    assert 0.1 * half < masked[1] < 0.9 * half
    quarter = losses(masked_loss="alpha", unmasked_weight=0.25)[1]
    assert quarter == pytest.approx(masked[1] + 0.25 * (half - masked[1]), rel=1e-5)


def test_regularisation_pictures_count_reg_weight(images_config: Make, one: Path, tmp_path: Path) -> None:
    reg = shutil.copytree(one, tmp_path / "reg")
    plain: Any = prepared(images_config(train_data_dir=one, reg_data_dir=reg, repeats=2))[0]
    light: Any = prepared(images_config(train_data_dir=one, reg_data_dir=reg, reg_weight=0.25))[0]
    plain.build()
    light.build()

    def place(family: Any, regularisation: bool) -> int:
        return next(
            number
            for number, sample in enumerate(family.samples)
            if (sample.item.path.name, sample.item.regularisation) == ("a.png", regularisation)
        )

    assert loss(light, place(light, True)) == pytest.approx(0.25 * loss(plain, place(plain, True)), rel=1e-6)
    assert loss(light, place(light, False)) == loss(plain, place(plain, False))
    assert sum(not s.item.regularisation for s in plain.samples) == 4


def test_validation_drops_nothing_out_and_leaves_the_networks_training(images_config: Make) -> None:
    def made(**changes: Any) -> Any:
        family, _, _ = prepared(images_config(train_text_encoder=True, **changes))
        for parameter in all_parameters(family.build()).values():
            parameter.data += 0.05
        return family

    family = made(lora_dropout=0.5)
    held = loss(family, 0, training=False)
    assert held == loss(family, 0, training=False) == loss(made(), 0)
    assert loss(family, 0) != held
    assert all(module.training for module in family.modules())


def test_the_trigger_word_is_never_put_before_a_regularisation_picture(
    images_config: Make, one: Path, tmp_path: Path
) -> None:
    reg = shutil.copytree(one, tmp_path / "reg")
    made = prepared(images_config(train_data_dir=one, reg_data_dir=reg, trigger_word="zorv"))[0]
    triggered = {sample.item.regularisation: "zorv" in sample.captions[0] for sample in made.samples}
    assert triggered == {False: True, True: False}


def test_losses_are_torchs_and_plugins_add_their_own(images_config: Make, tmp_path: Path) -> None:
    a, b = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(elementwise("l2", 0.1)(a, b), (a - b) ** 2)
    torch.testing.assert_close(elementwise("huber", 0.3)(a, b).mean(), functional.huber_loss(a, b, delta=0.3))
    torch.testing.assert_close(
        elementwise("smooth_l1", 0.3)(a, b).mean(), functional.smooth_l1_loss(a, b, beta=0.3)
    )
    with pytest.raises(ConfigError, match=r"`loss` is log_cosh.*huber, l2, smooth_l1"):
        family_from(images_config(loss="log_cosh"))
    plugin = tmp_path / "losses.py"
    plugin.write_text(
        "from trainer.plugins import loss\n\n"
        "@loss('abs_for_a_test')\ndef f(a, b):\n    return (a - b).abs()\n"
    )
    config = images_config(plugins=[plugin], loss="abs_for_a_test")
    l1: Any = prepared(config)[0]
    l2: Any = prepared(images_config())[0]
    l1.build()
    l2.build()
    assert loss(l1, 0) != loss(l2, 0)


def test_the_text_encoder_has_its_own_learning_rate_and_is_trained(images_config: Make, one: Path) -> None:
    config = images_config(train_data_dir=one, train_text_encoder=True, text_encoder_lr=3e-5)
    family: Any = prepared(config)[0]
    groups = family.build()
    assert {group.name: group.learning_rate for group in groups} == {"unet": 1e-3, "text_encoder": 3e-5}
    cached: Any = prepared(images_config(train_data_dir=one))[0]
    cached.build()
    assert loss(family, 0) == pytest.approx(loss(cached, 0), rel=1e-5)
    default: Any = prepared(images_config(train_data_dir=one, train_text_encoder=True))[0]
    assert default.build()[1].learning_rate == 1e-3


def test_pictures_of_other_shapes_are_in_other_buckets_and_come_as_often_as_repeats_say(
    images_config: Make,
) -> None:
    family: Any
    family, buckets, report = prepared(images_config(resolution=64, repeats=3))
    assert len(buckets) == 15
    assert len(set(buckets)) > 1
    for sample, (width, height) in zip(family.samples, buckets, strict=True):
        assert sample.shown[0].posterior.shape == (2, 4, height // 8, width // 8)
    held = family.prepare(report.items, report, training=False)
    assert len(held) == 5
    assert all(len(sample.shown) == len(sample.captions) == 1 for sample in family.samples[15:])


def test_gradient_checkpointing_changes_no_number(images_config: Make) -> None:
    def gradients(**changes: Any) -> dict[str, torch.Tensor]:
        family: Any = prepared(images_config(train_text_encoder=True, lora_dropout=0.2, **changes))[0]
        groups = family.build()
        moved(groups)
        family.loss([0], [generator(1)]).backward()
        return {name: parameter.grad for name, parameter in all_parameters(groups).items()}  # type: ignore[misc]

    plain, checkpointed = gradients(), gradients(gradient_checkpointing=True)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


def test_what_sdxl_is_told_of_sizes() -> None:
    view = View(scaled=(96, 64), size=(64, 64), offset=(10, 0))
    assert time_ids((960, 640), view) == (640, 960, 0, 10, 64, 64)
    flipped = View(scaled=(96, 64), size=(64, 64), offset=(10, 0), flip=True)
    assert time_ids((960, 640), flipped) == (640, 960, 0, 22, 64, 64)


@pytest.mark.parametrize(
    ("family", "targets", "count"),
    [
        ("sd15", sd.TARGETS, 192),
        ("sd15", sd.CONV_TARGETS, 278),
        ("sdxl", sd.TARGETS, 722),
        ("sdxl", sd.CONV_TARGETS, 788),
    ],
)
def test_the_counts_of_kohyas_modules(family: str, targets: tuple[str, ...], count: int) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from trainer.lora import is_layer

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_config(CONFIGS / family / "unet" / "config.json"))
    found = [
        name
        for name, module in unet.named_modules()
        if is_layer(module) and any(name.endswith(f".{target}") for target in targets)
    ]
    assert len(found) == count


def test_the_counts_of_text_modules(images_config: Make, tiny_sdxl: Path) -> None:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    def count(family: Any, name: str, kind: Any) -> int:
        config = read_config(CONFIGS / family.setup.base.family / name / "config.json")
        with torch.device("meta"):
            model = kind(CLIPTextConfig(**config))
        return len(family._text_targets(name, model))

    small, large = family_from(images_config()), family_from(images_config(base_model=tiny_sdxl))
    assert count(small, "text_encoder", CLIPTextModel) == 72
    assert count(large, "text_encoder", CLIPTextModel) == 66
    assert count(large, "text_encoder_2", CLIPTextModelWithProjection) == 192


@pytest.mark.parametrize(("stride", "side", "batch"), [(1, 8, 1), (2, 8, 1), (1, 3, 4), (1, 16, 1)])
def test_a_convolution_as_a_product_gives_the_same_numbers_and_gradients(
    monkeypatch: pytest.MonkeyPatch, stride: int, side: int, batch: int
) -> None:
    monkeypatch.setattr(sd_convs, "LARGE", 1)
    layer = torch.nn.Conv2d(6, 4, 3, stride=stride, padding=1).requires_grad_(False)
    x = torch.randn(batch, 6, side, side, requires_grad=True)
    expected = layer(x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    usual = layer.forward
    sd_convs.as_products(layer)
    assert layer.forward != usual
    found = layer(x)
    (got,) = torch.autograd.grad(found.square().sum(), x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)


def test_only_large_frozen_convolutions_become_products() -> None:
    small, trained = torch.nn.Conv2d(6, 4, 3), torch.nn.Conv2d(1200, 1200, 3)
    sd_convs.as_products(torch.nn.Sequential(small.requires_grad_(False), trained))
    assert "forward" not in vars(small)
    assert "forward" not in vars(trained)
