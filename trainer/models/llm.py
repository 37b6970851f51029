"""Causal language models: a LoRA on all linear layers, loss on the assistant's tokens only."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.data import ChatItem, DatasetReport, Problem
from trainer.data.chat_tokens import Sample, TemplateError, tokenize
from trainer.data.report import Item
from trainer.errors import DataError
from trainer.export import peft as peft_folder
from trainer.lora import extract, inject, is_layer, plan_of
from trainer.models.base import Family, Group, RunFacts, Setup
from trainer.models.llm_load import load_model, load_tokenizer, model_folder

IGNORED = -100


class CausalLM(Family):
    """Any causal LM that transformers loads."""

    unit = "tokens"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.folder = model_folder(setup.base, setup.base_digest, setup.cache)
        self.samples: list[Sample] = []
        self.names: list[str] = []
        self.model: Any = None

    def prepare(
        self, items: Sequence[Item], report: DatasetReport, *, training: bool = True
    ) -> list[Hashable]:
        tokenizer = load_tokenizer(self.folder)
        if not tokenizer.chat_template:
            report.warnings.append("the tokenizer has no chat template; ChatML is used.")
        limit, cut, empty = self.config.max_length, 0, []
        for item in items:
            assert isinstance(item, ChatItem)
            try:
                sample = tokenize(tokenizer, item.messages, limit)
            except TemplateError as error:
                report.problems.append(Problem(item.file, item.line, str(error)))
                continue
            cut += len(sample.ids) == limit
            if sample.targets:
                self.samples.append(sample)
                self.names.append(item.name)
            else:
                empty.append(item.name)
        report.raise_if_bad()
        if empty:
            text = (
                f"no assistant token within max_length {limit} in {len(empty)} rows (the first: {empty[0]})"
            )
            if not self.samples:
                raise DataError(
                    f"The dataset has nothing to learn: {text}.", "Raise max_length or shorten the rows."
                )
            report.warnings.append(f"{text}; they are left out.")
        if cut:
            report.warnings.append(f"{cut} rows reach max_length {limit}; what is beyond was cut.")
        return [0] * len(self.samples)

    def build(self) -> list[Group]:
        self.model = load_model(self.folder, self.setup.dtype)
        head = self.model.get_output_embeddings()
        config = self.config
        targets = (
            [name for name, module in self.model.named_modules() if is_layer(module) and module is not head]
            if config.target_modules == "auto"
            else list(config.target_modules)
        )
        parameters = inject(self.model, plan_of(config), targets, config.seed)
        self.model.to(self.setup.device).train()
        return [Group("model", config.learning_rate, parameters)]

    def units(self, batch: Sequence[int]) -> float:
        return sum(self.samples[index].targets for index in batch)

    def loss(self, batch: Sequence[int], rngs: Sequence[torch.Generator], *, training: bool = True) -> Tensor:
        """Sum of the cross entropy over the batch's target tokens; only positions that predict one reach the
        output layer. Padding is told by length, never by the pad token's id (it may be the end of turn)."""
        device = self.setup.device
        ids, mask, labels = collate([self.samples[index] for index in batch])
        wanted = (labels != IGNORED).any(dim=0).nonzero().flatten()
        with torch.autocast(device.type, self.setup.dtype, enabled=self.setup.dtype != torch.float32):
            logits = self.model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                use_cache=False,
                logits_to_keep=wanted.to(device),
            ).logits
        kept = labels[:, wanted].to(device)
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), kept.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def sources(self, batch: Sequence[int]) -> list[str]:
        return [self.names[index] for index in batch]

    def export(self, folder: Path, run: RunFacts) -> list[Path]:
        adapter = extract(self.model)
        adapter.description["task_type"] = "CAUSAL_LM"
        return peft_folder.save(folder, adapter, str(self.setup.base.path))


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, labels), each int64 (B, T), padded on the right. labels[b, t] is the token that position t
    should predict (t + 1), or IGNORED."""
    longest = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, sample in enumerate(samples):
        length = len(sample.ids)
        tokens = torch.tensor(sample.ids)
        ids[row, :length] = tokens
        mask[row, :length] = 1
        following = torch.where(torch.tensor(sample.learnt[1:], dtype=torch.bool), tokens[1:], IGNORED)
        labels[row, : length - 1] = following
    return ids, mask, labels
