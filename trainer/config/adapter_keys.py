"""What is put into the base model, and how it learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from trainer.config.fields import BatchSize, Modules, Precision, Real, Strict, _word, key


class AdapterKeys(Strict):
    """The adapter."""

    adapter: Literal["lora", "locon", "loha", "lokr"] = key(
        "lora; locon: with the 3x3 convolutions; loha and lokr: products in place of sums",
        "lora",
        default="lora",
    )
    lora_rank: int = key("rank of the adapter", "4 to 32", default=8, ge=1, le=1024)
    lora_alpha: Real | None = key(
        "the adapter is scaled by lora_alpha / lora_rank", "lora_rank", default=None, gt=0, le=4096
    )
    conv_rank: int | None = key(
        "rank on 3x3 convolutions (locon)", "4 to 8; lora_rank when unset", default=None, ge=1, le=1024
    )
    conv_alpha: Real | None = key(
        "alpha on 3x3 convolutions (locon)", "conv_rank", default=None, gt=0, le=4096
    )
    dora: bool = key("learn direction and magnitude apart (DoRA); slower", "false", default=False)
    rslora: bool = key("scale by alpha / sqrt(rank), for high ranks", "false", default=False)
    init: str = key(
        "how the adapter starts: default, gaussian, pissa, pissa_niter_N, olora, orthogonal",
        "default",
        default="default",
        pattern=r"^(default|gaussian|pissa|pissa_niter_\d+|olora|orthogonal)$",
    )
    lora_dropout: Real = key("dropout before the adapter", "0 to 0.1", default=0.0, ge=0, lt=1)
    target_modules: Modules = key(
        "which linear or convolution modules get an adapter, by the end of their names",
        "auto",
        default="auto",
    )
    train_text_encoder: bool = key(
        "an adapter in the text encoders, too (images); its captions are then encoded in every step",
        "false",
        default=False,
    )
    text_encoder_lr: Real | None = key(
        "learning rate of the text encoders",
        "a half of learning_rate; learning_rate when unset",
        default=None,
        gt=0,
        le=1,
    )


class LearningKeys(Strict):
    """Optimizer, schedule, loss."""

    batch_size: BatchSize = key("samples per micro-batch; auto: the largest that fits", "1 to 8", default=1)
    gradient_accumulation: int = key("micro-batches per step", "1 to 8", default=1, ge=1, le=4096)
    epochs: int = key("passes over the dataset", "5 to 20", default=10, ge=1, le=100_000)
    max_steps: int | None = key(
        "stop after so many steps; takes the place of epochs", "unset", default=None, ge=1, le=10_000_000
    )
    learning_rate: Real = key("step size of the optimizer", "1e-4 to 1e-3", default=1e-4, gt=0, le=1)
    lr_schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial", "inverse_sqrt"] = (
        key("how the learning rate falls after warm-up", "constant", default="constant")
    )
    lr_cycles: int = key("how often cosine_restarts begins", "1 to 4", default=1, ge=1, le=1000)
    lr_end: Real = key("share of learning_rate that is left at the end", "0 to 0.1", default=0.0, ge=0, le=1)
    warmup_steps: int = key("steps over which the learning rate rises from 0", "0 to 100", default=0, ge=0)
    optimizer: str = key(
        "adamw, adamw8bit, adafactor, a plugin's name, or package.Class",
        "adamw",
        default="adamw",
        pattern=r"^[A-Za-z_][\w-]*(\.[A-Za-z_]\w*)*$",
    )
    optimizer_args: dict[str, Any] = key("further arguments of the optimizer", default={})
    weight_decay: Real = key("decoupled weight decay", "0 to 0.01", default=0.01, ge=0, le=1)
    max_grad_norm: Real = key("clip the gradient's norm to this; 0: never", "1.0", default=1.0, ge=0, le=1e6)
    skip_nonfinite: int = key(
        "so many steps in a row may have a gradient that is not a number before the run stops",
        "0 to 5",
        default=0,
        ge=0,
        le=1000,
    )
    seed: int = key("of the order, the noise and the adapter's start", "any", default=0, ge=0, lt=2**63)
    mixed_precision: Precision = key(
        "number format of the frozen base; the adapter is always fp32. auto: bf16 on CUDA",
        "auto",
        default="auto",
    )
    gradient_checkpointing: bool = key("less memory for a third more work", "false", default=False)
    compile: Annotated[Literal["on", "off"], BeforeValidator(_word)] = key(
        "torch.compile the model; falls back to eager", "off; on for long GPU runs", default="off"
    )
    loss: str = key(
        "l2, huber, smooth_l1, or a plugin's name (images)", "l2", default="l2", pattern=r"^[A-Za-z_][\w-]*$"
    )
    huber_delta: Real = key(
        "where huber and smooth_l1 turn from squares to lines", "0.1", default=0.1, gt=0, le=100
    )
    min_snr_gamma: Real | None = key("min-SNR loss weighting; unset: off", "5", default=None, gt=0, le=100)
    noise_offset: Real = key("per-channel offset added to the noise", "0 to 0.1", default=0.0, ge=0, le=1)
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = key(
        "what the UNet predicts; auto: what the model's scheduler says", "auto", default="auto"
    )
    zero_terminal_snr: bool = key(
        "rescale the noise schedule so that its last step is pure noise; wants v_prediction",
        "false",
        default=False,
    )
