"""`python -m trainer.generate --base-model M --prompt P`: the greedy answer of a language model."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.cache import Cache
from trainer.config.schema import default_cache_root
from trainer.errors import EXIT_OK, ModelError, explain
from trainer.fast_imports import lean_imports, own_process
from trainer.models.sniff import sniff


@dataclass
class Talker:
    """A loaded model; `adapter` is None or in place."""

    model: Any
    tokenizer: Any

    def answer(self, prompt: str, max_new_tokens: int = 64) -> str:
        """The greedy answer to one user message, without special tokens."""
        import torch

        from trainer.data.chat_tokens import render

        text = render(self.tokenizer, [("user", prompt)], prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        stop = self.tokenizer.eos_token_id
        with torch.inference_mode():
            out = self.model.generate(
                **ids,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=stop,
                pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else stop,
            )
        answer: str = self.tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        return answer.strip()

    def adapt(self, folder: Path) -> None:
        """Put the peft adapter in `folder` on the model. Raises ModelError."""
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} holds no adapter_config.json.", "Name the output_dir of a training.")
        with lean_imports():
            from peft import PeftModel
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.model = PeftModel.from_pretrained(self.model, str(folder)).eval()


def talker(base_model: Path, cache_dir: Path | None = None) -> Talker:
    """Load the language model `base_model`. Raises ModelError."""
    base = sniff(base_model)
    if base.kind != "text":
        raise ModelError(f"{base_model} is a Stable Diffusion model.", "Name a language model.")
    from trainer.models.llm_load import load_model, load_tokenizer, model_folder

    with lean_imports():
        import torch
    cache = Cache(cache_dir or default_cache_root())
    digest = "sha256:" + (cache.file_digest(base.path) if base.path.is_file() else "")
    folder = model_folder(base, digest, cache)
    return Talker(load_model(folder, torch.float32).eval(), load_tokenizer(folder))


def generate(
    base_model: Path,
    prompt: str,
    adapter: Path | None = None,
    *,
    max_new_tokens: int = 64,
    cache_dir: Path | None = None,
) -> str:
    """The greedy answer of `base_model` (with `adapter`, if one is given) to `prompt`. Raises ModelError."""
    speaker = talker(base_model, cache_dir)
    if adapter is not None:
        speaker.adapt(adapter)
    return speaker.answer(prompt, max_new_tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer as `argv` says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.generate", description=__doc__.split("\n")[0])
    parser.add_argument("--base-model", type=Path, required=True, help=".gguf file, or folder of a causal LM")
    parser.add_argument("--adapter", type=Path, help="folder with adapter_config.json")
    parser.add_argument("--prompt", required=True, help="one user message")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--compare", action="store_true", help="answer without and with the adapter, loading once"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args(argv)
    if args.compare and args.adapter is None:
        parser.error("--compare wants --adapter")
    own_process()
    try:
        speaker = talker(args.base_model)
        answers: dict[str, str] = {}
        if args.compare:
            answers["before"] = speaker.answer(args.prompt, args.max_new_tokens)
        if args.adapter is not None:
            speaker.adapt(args.adapter)
        answers["after" if args.compare else "answer"] = speaker.answer(args.prompt, args.max_new_tokens)
    except Exception as error:  # noqa: BLE001 - every failure is explained
        known = explain(error, "generate")
        print(f"error: {known}", file=sys.stderr)
        return known.exit_code
    if args.json or args.compare:
        print(json.dumps({"prompt": args.prompt, **answers}, ensure_ascii=False))
    else:
        print(answers["answer"])
    return EXIT_OK


if __name__ == "__main__":
    from trainer.__main__ import exit_now

    exit_now(main())
