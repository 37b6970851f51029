"""`python -m trainer.generate --base-model M --prompt P`: what a language model says, adapted or not."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.cache import Cache
from trainer.config.schema import default_cache_root
from trainer.errors import EXIT_OK, ConfigError, ModelError, explain
from trainer.fast_imports import lean_imports, own_process
from trainer.models.sniff import sniff

if TYPE_CHECKING:
    from trainer.models.llm_answer import Sampling


@dataclass
class Talker:
    """A loaded model; `adapter` is None or in place."""

    model: Any
    tokenizer: Any

    def answer(
        self, prompt: str, sampling: Sampling | None = None, *, system: str = "", raw: bool = False
    ) -> str:
        """The answer to one user message, without special tokens; `raw`: what follows the text `prompt`.
        Raises ModelError if the chat template refuses the conversation."""
        from trainer.data.chat_tokens import TemplateError
        from trainer.models.llm_answer import Sampling, answer, go_on

        how = sampling or Sampling()
        if raw:
            return go_on(self.model, self.tokenizer, prompt, how)
        turns = [*([("system", system)] if system else []), ("user", prompt)]
        try:
            return answer(self.model, self.tokenizer, turns, how)
        except TemplateError as error:
            raise ModelError(
                f"The prompt cannot be asked: {error}.", "Use --raw, or another chat template."
            ) from error

    def adapt(self, folder: Path) -> None:
        """Put the peft adapter in `folder` on the model, with its chat template if it has one. Raises
        ModelError."""
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} holds no adapter_config.json.", "Name the output_dir of a training.")
        with lean_imports():
            from peft import PeftModel
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.model = PeftModel.from_pretrained(self.model, str(folder)).eval()
        template = folder / "chat_template.jinja"
        if template.is_file():
            self.tokenizer.chat_template = template.read_text(encoding="utf-8")


def talker(base_model: Path, cache_dir: Path | None = None, device: str = "cpu") -> Talker:
    """Load the language model `base_model` on `device`. Raises ModelError, ConfigError."""
    base = sniff(base_model)
    if base.kind != "text":
        raise ModelError(f"{base_model} is a Stable Diffusion model.", "Name a language model.")
    with lean_imports():
        import torch

    from trainer.device import pick_device
    from trainer.models.llm_load import load_model, load_tokenizer, model_folder

    where = pick_device(device)
    cache = Cache(cache_dir or default_cache_root())
    digest = "sha256:" + (cache.file_digest(base.path) if base.path.is_file() else "")
    folder = model_folder(base, digest, cache)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    return Talker(load_model(folder, dtype).to(where).eval(), load_tokenizer(folder))


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
    from trainer.models.llm_answer import Sampling

    if adapter is not None:
        speaker.adapt(adapter)
    return speaker.answer(prompt, Sampling(max_new_tokens=max_new_tokens))


def main(argv: Sequence[str] | None = None) -> int:
    """Answer as `argv` says; returns the exit code."""
    args = _arguments(argv)
    own_process()
    try:
        prompts = [*args.prompt, *_lines(args.prompts_file)]
        speaker = talker(args.base_model, device=args.device)
        from trainer.models.llm_answer import Sampling

        how = Sampling(
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            repetition_penalty=args.repetition_penalty,
            seed=args.seed,
        )

        def speak(name: str) -> None:
            for row in answers:
                row[name] = speaker.answer(row["prompt"], how, system=args.system, raw=args.raw)

        answers = [{"prompt": prompt} for prompt in prompts]
        if args.compare:
            speak("before")
        if args.adapter is not None:
            speaker.adapt(args.adapter)
        speak("after" if args.compare else "answer")
    except Exception as error:  # noqa: BLE001 - every failure is explained
        known = explain(error, "generate")
        print(f"error: {known}", file=sys.stderr)
        return known.exit_code
    for row in answers:
        print(json.dumps(row, ensure_ascii=False) if args.json or args.compare else row["answer"])
    return EXIT_OK


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.generate", description=__doc__)
    add = parser.add_argument
    add("--base-model", type=Path, required=True, help=".gguf file, or folder of a causal LM")
    add("--adapter", type=Path, help="folder with adapter_config.json")
    add("--prompt", action="append", default=[], help="one user message; may be given several times")
    add("--prompts-file", type=Path, help="UTF-8 text, a user message a line")
    add("--system", default="", help="a system message before each prompt")
    add("--raw", action="store_true", help="go on with the prompt's text, without a chat template")
    add("--max-new-tokens", type=_at_least(int, 1), default=64)
    add("--temperature", type=_at_least(float, 0), default=0.0, help="0: the likeliest token (the default)")
    add("--top-p", type=_at_least(float, 0), default=1.0, help="draw from so much of the probability")
    add("--top-k", type=_at_least(int, 0), default=0, help="draw from so many tokens; 0: all")
    add("--repetition-penalty", type=_at_least(float, 1), default=1.0, help="1: none")
    add("--seed", type=int, default=0, help="of the draws, for each prompt anew")
    add("--device", default="cpu", help="cpu, auto, cuda, cuda:N or mps")
    add("--compare", action="store_true", help="answer without and with the adapter, loading once")
    add("--json", action="store_true", help="one JSON document a prompt on stdout")
    args = parser.parse_args(argv)
    if args.compare and args.adapter is None:
        parser.error("--compare wants --adapter")
    if not args.prompt and args.prompts_file is None:
        parser.error("--prompt or --prompts-file is wanted")
    if not 0 < args.top_p <= 1:
        parser.error("--top-p is more than 0 and at most 1")
    return args


def _at_least(kind: type[int] | type[float], least: float) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    parse.__name__ = "number"
    return parse


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--prompts-file: {path} cannot be read: {error}."]) from None
    return [line for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    from trainer.__main__ import exit_now

    exit_now(main())
