"""Tiny models of the real classes with random weights: for the self-check, the examples and the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from trainer.data.chat_tokens import CHATML
from trainer.fast_imports import lean_imports
from trainer.models.clip_vocab import clip_tokenizer
from trainer.quiet import quiet


def make_sd(
    folder: Path,
    *,
    vocabulary: Path | None = None,
    channels: tuple[int, ...] = (32, 64),
    width: int = 32,
    layers: int = 1,
    seed: int = 0,
) -> None:
    """Write a Stable Diffusion pipeline as a diffusers folder: a UNet of `channels`, a VAE that halves the
    side three times, a CLIP text encoder of `width`. The same arguments give the same weights."""
    depth = len(channels)
    unet: dict[str, Any] = {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * (depth - 1)),
        "up_block_types": (*["CrossAttnUpBlock2D"] * (depth - 1), "UpBlock2D"),
        "cross_attention_dim": width,
    }
    _make_pipeline(folder, "StableDiffusionPipeline", vocabulary, unet, width, seed)


def make_sdxl(folder: Path, *, vocabulary: Path | None = None, width: int = 32, seed: int = 0) -> None:
    """Write a Stable Diffusion XL pipeline as a diffusers folder: three levels of 32 channels, two CLIP text
    encoders of `width`. The same arguments give the same weights."""
    unet: dict[str, Any] = {
        "block_out_channels": (32, 32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2 * width,
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + width,
    }
    _make_pipeline(folder, "StableDiffusionXLPipeline", vocabulary, unet, width, seed)


def _make_pipeline(
    folder: Path, name: str, vocabulary: Path | None, unet_config: dict[str, Any], width: int, seed: int
) -> None:
    with lean_imports():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    quiet()
    large = name == "StableDiffusionXLPipeline"
    tokenizer = clip_tokenizer(vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            attention_head_dim=8,
            norm_num_groups=8,
            **unet_config,
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=64,
        )
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        encoders = {"": CLIPTextModel(text)} | ({"_2": CLIPTextModelWithProjection(text)} if large else {})
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    index: dict[str, object] = {}
    for end, encoder in encoders.items():
        encoder.save_pretrained(folder / f"text_encoder{end}")
        (clip_tokenizer(vocabulary, pad="!") if end else tokenizer).save_pretrained(
            folder / f"tokenizer{end}"
        )
        index[f"text_encoder{end}"] = ["transformers", type(encoder).__name__]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
    _write(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "clip_sample": False,
            "steps_offset": 1,
        },
    )
    _write(
        folder / "model_index.json",
        {
            "_class_name": name,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            **({} if large else {"requires_safety_checker": False, "safety_checker": [None, None]}),
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            **index,
        },
    )


def make_lm(folder: Path, *, width: int = 32, layers: int = 2, seed: int = 0) -> None:
    """Write a Llama of `width` with a byte-level tokenizer and a ChatML template as a transformers folder."""
    with lean_imports():
        from tokenizers import Tokenizer, decoders, pre_tokenizers
        from tokenizers.models import BPE
        from transformers import PreTrainedTokenizerFast
        from transformers.models.llama.configuration_llama import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaForCausalLM

    quiet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.2,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write(path: Path, value: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
