"""What is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from trainer.config.fields import FilePath, Real, Strict, Words, _word, key


class DataKeys(Strict):
    """Both worlds."""

    train_data_dir: FilePath = key("folder with the images, or with *.jsonl or *.txt for a language model")
    metadata_path: FilePath | None = key(
        "captions (.csv or .jsonl), or the .jsonl of rows; found in train_data_dir when unset", default=None
    )
    repeats: int = key("how often a sample comes in one epoch", "1 to 10", default=1, ge=1, le=10_000)
    validation_dir: FilePath | None = key(
        "folder of held-out samples, read as train_data_dir is", default=None
    )
    validation_split: Real = key(
        "share of the samples held out, by their content, when there is no validation_dir",
        "0 to 0.1",
        default=0.0,
        ge=0,
        le=0.5,
    )


class ImageKeys(Strict):
    """Pictures and their captions."""

    caption_column: str | None = key(
        "column of the captions; text, caption or prompt when unset", default=None, min_length=1
    )
    caption_fallback: str | None = key(
        "caption of a picture that has none, {concept} for the words of a kohya folder's name; unset: a "
        "picture without a caption is a bad one",
        default=None,
    )
    on_bad_image: Literal["error", "skip"] = key(
        "what a corrupt image or a missing caption means", "error", default="error"
    )
    background: str = key(
        "what shows through where a picture is transparent: white, black or #rrggbb",
        "white",
        default="white",
        pattern=r"^(white|black|#[0-9a-fA-F]{6})$",
    )
    resolution: int | None = key(
        "side of a square picture in pixels, others keep this area; unset: what the model was made for",
        "512",
        default=None,
        ge=16,
        le=4096,
        multiple_of=8,
    )
    aspect_buckets: bool = key(
        "keep the pictures' shapes, in batches of one shape each; false: cut squares", "true", default=True
    )
    bucket_step: int = key(
        "sides of the buckets are multiples of so many pixels", "64", default=64, ge=8, le=256, multiple_of=8
    )
    bucket_max_ratio: Real = key("longest side of a bucket over its shortest", "2", default=2.0, ge=1, le=8)
    flip: bool = key("mirror half of the images at random", "false", default=False)
    crop: Literal["center", "random"] = key(
        "where a picture is cut that does not fit its bucket", "center", default="center"
    )
    augmentations: Words = key("names of augmentations from plugins, in this order", default=())
    cache_variants: int = key(
        "how many crops and augmentations of each picture, and orders of each caption, are drawn beforehand",
        "4 to 16",
        default=4,
        ge=1,
        le=256,
    )
    caption_dropout: Real = key(
        "share of captions replaced by the empty one", "0 to 0.1", default=0.0, ge=0, le=1
    )
    caption_shuffle: bool = key("shuffle the parts of a caption", "false", default=False)
    keep_tokens: int = key("so many parts at the beginning stay where they are", "0 to 2", default=0, ge=0)
    caption_separator: str = key("what parts a caption", "a comma", default=",", min_length=1)
    trigger_word: str | None = key(
        "put before every caption that does not hold it; never before one of reg_data_dir",
        default=None,
        min_length=1,
    )
    caption_prefix: str = key("put before every caption", default="")
    caption_suffix: str = key("put after every caption", default="")
    reg_data_dir: FilePath | None = key(
        "regularisation pictures of the class (prior preservation), read as train_data_dir is", default=None
    )
    reg_caption: str | None = key(
        "caption_fallback of the regularisation pictures: the class without the trigger word", default=None
    )
    reg_weight: Real = key("weight of the regularisation pictures' loss", "1", default=1.0, ge=0, le=100)
    masked_loss: Annotated[Literal["off", "alpha", "folder"], BeforeValidator(_word)] = key(
        "learn from the opaque part only, or from what is white in mask_dir", "off", default="off"
    )
    mask_dir: FilePath | None = key("masks with the pictures' names, for masked_loss: folder", default=None)
    unmasked_weight: Real = key("weight of what the mask hides", "0 to 0.1", default=0.0, ge=0, le=1)
    max_token_length: Literal[75, 150, 225] = key(
        "tokens of a caption; 150 and 225 are encoded in chunks of 75", "75", default=75
    )


class TextKeys(Strict):
    """Rows of a language model."""

    row_format: Literal["auto", "messages", "alpaca", "sharegpt", "text"] = key(
        "shape of a row; auto: told from its keys", "auto", default="auto"
    )
    loss_on: Literal["answers", "all"] = key(
        "learn the assistant's words only, or every token", "answers", default="answers"
    )
    max_length: int = key(
        "longest row in tokens (language models)", "256 to 2048", default=512, ge=8, le=1_048_576
    )
    packing: bool = key(
        "put several rows into one sequence of max_length, each seeing only itself", "true", default=True
    )
    chat_template: FilePath | None = key(
        "a Jinja file in place of the tokenizer's chat template", default=None
    )
