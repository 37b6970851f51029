"""From checked rows to token samples, with everything about them that a user should know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.data.chat_tokens import Sample, TemplateError, template_of, tokenize, tokenize_text
from trainer.data.report import DatasetReport, ImageItem, Item, Problem, TextItem
from trainer.errors import ConfigError, DataError
from trainer.models.llm_load import load_tokenizer


def ready_tokenizer(folder: Path, chat_template: Path | None) -> Any:
    """The model's tokenizer; its chat template is the file `chat_template` if one is given, else its own.
    Raises ModelError; ConfigError for a template that is none."""
    tokenizer = load_tokenizer(folder)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            [f"`base_model`: {folder} has no tokenizer.json, which tells where in a text a token lies."],
            "Save it with a recent transformers, which writes one.",
        )
    if chat_template is not None:
        tokenizer.chat_template = _template(tokenizer, chat_template)
    return tokenizer


def _template(tokenizer: Any, file: Path) -> str:
    from jinja2.exceptions import TemplateSyntaxError

    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [f"`chat_template`: {file} cannot be read: {error}."], "Correct the path."
        ) from None
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, chat_template=text)
    except TemplateSyntaxError as error:
        raise ConfigError(
            [f"`chat_template`: {file}:{error.lineno}: {error.message}."], "Mend the template."
        ) from None
    except Exception:  # noqa: BLE001 - a template may refuse this conversation and suit the dataset's
        pass
    return text


def samples_of(
    tokenizer: Any, items: Sequence[Item], config: TrainConfig, report: DatasetReport, context: int
) -> tuple[list[Sample], list[str]]:
    """(samples of at most max_length tokens and at most `context`, each with a target; their rows' names).
    Appends to the report what was cut and what was left out. Raises DataError: rows that the template
    refuses, or none left."""
    limit = min(config.max_length, context)
    said = f"max_length {limit}" if limit == config.max_length else f"the model's context of {limit} tokens"
    samples: list[Sample] = []
    names: list[str] = []
    cut: list[str] = []
    empty: list[str] = []
    chats = 0
    for item in items:
        if isinstance(item, ImageItem):
            raise TypeError("an image in a dataset of text")
        if isinstance(item, TextItem):
            found = tokenize_text(tokenizer, item.text, limit)
        else:
            chats += 1
            try:
                found = tokenize(tokenizer, item.messages, config.loss_on)
            except TemplateError as error:
                report.problems.append(Problem(item.file, item.line, str(error)))
                continue
        cut += [item.name] * any(len(sample.ids) > limit for sample in found)
        kept = [sample for sample in (sample.cut(limit) for sample in found) if sample.targets]
        empty += [item.name] * (not kept)
        samples += kept
        names += [item.name] * len(kept)
    report.raise_if_bad()
    if chats and template_of(tokenizer):
        report.warnings.append("the tokenizer has no chat template; ChatML is used.")
    if empty:
        text = f"no token to learn within {said} in {len(empty)} rows (the first: {empty[0]})"
        if not samples:
            raise DataError(
                f"The dataset has nothing to learn: {text}.", "Raise max_length or shorten the rows."
            )
        report.warnings.append(f"{text}; they are left out.")
    if cut:
        report.warnings.append(f"{len(cut)} rows are longer than {said} and were cut (the first: {cut[0]}).")
    return samples, names
