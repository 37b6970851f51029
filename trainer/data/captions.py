"""Which texts a caption may become: shuffled, with prefix, suffix and trigger word. Pure."""

from __future__ import annotations

import random
import re

from trainer.config import TrainConfig


def texts(caption: str, config: TrainConfig, key: str, *, trigger: bool = True) -> list[str]:
    """All texts that may be drawn for `caption`, without repetition, at least one. With caption_shuffle
    these are up to `cache_variants` orders of its parts, drawn from the config's seed and `key` (the
    picture's content); the first `keep_tokens` parts stay in place. The trigger word comes first and is
    never shuffled; without `trigger` (regularisation) it is left out. Dropout is not done here."""
    if not trigger:
        config = config.model_copy(update={"trigger_word": None})
    orders = _orders(caption, config, key) if config.caption_shuffle else [caption]
    return list(dict.fromkeys(_framed(order, config) for order in orders))


def plain(caption: str, config: TrainConfig) -> str:
    """The text of `caption` in its own order: for held-out pictures."""
    return _framed(caption, config)


def parts(caption: str, separator: str) -> list[str]:
    """The non-empty parts of `caption`, stripped."""
    return [part.strip() for part in caption.split(separator) if part.strip()]


def holds(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a word of its own, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _orders(caption: str, config: TrainConfig, key: str) -> list[str]:
    pieces = parts(caption, config.caption_separator)
    fixed, moving = pieces[: config.keep_tokens], pieces[config.keep_tokens :]
    if len(moving) < 2:
        return [caption]
    glue = f"{config.caption_separator.strip()} " if config.caption_separator.strip() else " "
    found = []
    for variant in range(config.cache_variants):
        order = list(moving)
        random.Random(f"caption/{config.seed}/{key}/{variant}").shuffle(order)
        found.append(glue.join([*fixed, *order]))
    return found


def _framed(text: str, config: TrainConfig) -> str:
    whole = _joined(_joined(config.caption_prefix, text), config.caption_suffix)
    if config.trigger_word is None or holds(whole, config.trigger_word):
        return whole
    return f"{config.trigger_word}, {whole}" if whole else config.trigger_word


def _joined(left: str, right: str) -> str:
    """One space between, none before punctuation."""
    left, right = left.strip(), right.strip()
    if not left or not right:
        return left or right
    return f"{left}{right}" if right[0] in ",.;:!?" else f"{left} {right}"
