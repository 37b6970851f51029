"""The real CLIP tokenizer, built offline from the vocabulary that the package open-clip-torch carries."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

MERGES = 49_152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"


def vocabulary_file() -> Path | None:
    """`bpe_simple_vocab_16e6.txt.gz` of an installed open_clip, not imported (it wants torchvision)."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder) / "bpe_simple_vocab_16e6.txt.gz").is_file():
            return file
    return None


def clip_tokenizer(vocabulary: Path | None = None, pad: str | None = None) -> Any:
    """transformers' CLIPTokenizer: 49,408 entries from `vocabulary`, or bytes alone (514) without one.
    `pad`: the token that fills up; the end token when None."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    merges: list[tuple[str, str]] = []
    if vocabulary is not None:
        lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")
        for line in lines[1 : MERGES + 1]:
            first, second = line.split()
            merges.append((first, second))
    units = _byte_units()
    words = [*units, *(f"{unit}</w>" for unit in units), *("".join(pair) for pair in merges), START, END]
    pairs: Any = merges
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=pairs,
        model_max_length=77,
        pad_token=pad or END,
    )


def _byte_units() -> list[str]:
    """A printable character for each byte, in the order of GPT-2's bytes_to_unicode (CLIP uses the same)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
