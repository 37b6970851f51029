"""Causal language models: an adapter on all linear layers, rows packed without padding."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.data import DatasetReport
from trainer.data.chat_tokens import Sample, template_of
from trainer.data.packing import pack
from trainer.data.report import ChatItem, Item
from trainer.errors import ConfigError, TrainerError
from trainer.export import gguf_file, merge
from trainer.export import peft as peft_folder
from trainer.files import write_atomic
from trainer.lora import extract, inject, is_layer, plan_of
from trainer.models.base import Family, Group, RunFacts, Setup
from trainer.models.llm_answer import Sampling, answer, go_on
from trainer.models.llm_head import cross_entropy
from trainer.models.llm_load import context_of, load_model, model_folder
from trainer.models.llm_lora import fuse
from trainer.models.llm_rows import ready_tokenizer, samples_of
from trainer.models.llm_stream import stream, use_rows
from trainer.progress import Progress

IGNORED = -100
TEMPLATE = "chat_template.jinja"
Loss = Callable[[Sequence[Sample]], Tensor]


class CausalLM(Family):
    """Any causal LM that transformers loads. A sample of the loop is a pack of rows."""

    unit = "tokens"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.folder = model_folder(setup.base, setup.base_digest, setup.cache)
        if self.config.merge or self.config.gguf != "off":
            merge.check(self.folder)
        if self.config.gguf != "off":
            gguf_file.check(self.folder, setup.base.path)
        self.tokenizer = ready_tokenizer(self.folder, self.config.chat_template)
        self.packs: list[tuple[Sample, ...]] = []
        self.names: list[list[str]] = []
        self.chats = False
        self.model: Any = None
        self._own_attention = ""
        self._rows_loss: Loss = self._padded_loss
        self._watch: _GradientWatch | None = None

    def prepare(
        self, items: Sequence[Item], report: DatasetReport, *, training: bool = True
    ) -> list[Hashable]:
        samples, names = samples_of(self.tokenizer, items, self.config, report, context_of(self.folder))
        self.chats = self.chats or any(isinstance(item, ChatItem) for item in items)
        if training:
            samples, names = samples * self.config.repeats, names * self.config.repeats
        lengths = [len(sample.ids) for sample in samples]
        bins: list[tuple[int, ...]] = [(row,) for row in range(len(samples))]
        if self.config.packing:
            bins = pack(lengths, self.config.max_length)
        self.packs += [tuple(samples[row] for row in rows) for rows in bins]
        self.names += [[names[row] for row in rows] for rows in bins]
        return [0] * len(bins)

    def build(self) -> list[Group]:
        config = self.config
        self.model = load_model(self.folder, self.setup.dtype)
        head = self.model.get_output_embeddings()
        targets = (
            [name for name, module in self.model.named_modules() if is_layer(module) and module is not head]
            if config.target_modules == "auto"
            else list(config.target_modules)
        )
        self._refuse_tied_head(targets)
        with warnings.catch_warnings():
            # That a layer is a Conv1D or tied: peft sees to the one, `_refuse_tied_head` to the other.
            warnings.filterwarnings(
                "ignore", r"fan_in_fan_out is set to|Model has `tie_word_embeddings", UserWarning
            )
            parameters = inject(self.model, plan_of(config), targets, config.seed)
        _still(self.model)
        self.model.to(self.setup.device)
        plain, adapted = fuse(self.model)
        self._autocast = self.setup.dtype != torch.float32 and plain < adapted
        self._own_attention = str(self.model.config._attn_implementation)  # noqa: SLF001
        self._rows_loss = self._fastest()
        if config.gradient_checkpointing:
            _checkpoint(self.model)
        self.model.train()
        self._watch = _GradientWatch(parameters)
        return [Group("model", config.learning_rate, parameters)]

    def modules(self) -> list[nn.Module]:
        return [self.model.get_decoder()]

    def units(self, batch: Sequence[int]) -> float:
        return sum(sample.targets for index in batch for sample in self.packs[index])

    def loss(self, batch: Sequence[int], rngs: Sequence[torch.Generator], *, training: bool = True) -> Tensor:
        """Sum of the cross entropy over the batch's target tokens; only positions that predict one reach the
        output layer. Padding, where there is any, is told by length, never by the pad token's id (it may be
        the end of turn)."""
        rows = [sample for index in batch for sample in self.packs[index]]
        if not training:
            with self._resting():
                return self._rows_loss(rows)
        if self._watch is not None and self._watch.seen:
            self._watch.check()
            self._watch = None
        if self.config.lora_dropout:
            devices = [self.setup.device] if self.setup.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(rngs[0].initial_seed())
                return self._rows_loss(rows)
        return self._rows_loss(rows)

    def sources(self, batch: Sequence[int]) -> list[str]:
        return [name for index in batch for name in self.names[index]]

    def export(self, folder: Path, run: RunFacts) -> list[Path]:
        """The peft adapter, a chat template that is not the base model's, and what `merge` and `gguf` ask."""
        folder.mkdir(parents=True, exist_ok=True)
        adapter = extract(self.model)
        adapter.description["task_type"] = "CAUSAL_LM"
        files = peft_folder.save(folder, adapter, str(self.setup.base.path))
        template = self.tokenizer.chat_template if self.config.chat_template else template_of(self.tokenizer)
        if self.chats and template:
            write_atomic(folder / TEMPLATE, template.encode())
            files.append(folder / TEMPLATE)
        if self.config.merge or self.config.gguf != "off":
            merged = merge.merged(self.folder, folder)
            if (kind := self.config.gguf) != "off":
                path = folder / "gguf" / f"{folder.absolute().name}.{kind}.gguf"
                base, source = self.folder, self.setup.base.path
                files.append(gguf_file.save(merged, self.tokenizer, path, kind, base, source))
            if self.config.merge:
                files += merge.save(merged, self.folder, self.tokenizer, folder / "merged")
        return files

    def sample(self, prompts: Sequence[str], folder: Path, seed: int) -> list[Path]:
        """The greedy answers (or, after documents alone, continuations) to `prompts`, as generations.json."""
        how = Sampling(max_new_tokens=self.config.sample_tokens, seed=seed)
        said = []
        with self._resting(), self._own_masks():
            for prompt in prompts:
                if self.chats:
                    text = answer(self.model, self.tokenizer, [("user", prompt)], how)
                else:
                    text = go_on(self.model, self.tokenizer, prompt, how)
                said.append({"prompt": prompt, "answer": text})
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "generations.json"
        write_atomic(path, (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode())
        return [path]

    def _refuse_tied_head(self, targets: Sequence[str]) -> None:
        """Raises ConfigError: an output layer that is the embedding cannot take an adapter and be merged."""
        head = self.model.get_output_embeddings()
        named = [name for name, module in self.model.named_modules() if module is head]
        tied = head is not None and head.weight is self.model.get_input_embeddings().weight
        asked = any(name == t or name.endswith(f".{t}") for name in named for t in targets)
        if tied and asked and (self.config.merge or self.config.gguf != "off"):
            raise ConfigError(
                [f"`target_modules`: {named[0]} is tied to the embedding; a merge would change both."],
                "Leave it out, or set merge: false and gguf: off.",
            )

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """No dropout, no checkpointing; as it was afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @contextmanager
    def _own_masks(self) -> Iterator[None]:
        """The model's own attention, which knows a cache."""
        now = self.model.config._attn_implementation  # noqa: SLF001
        self.model.set_attn_implementation(self._own_attention)
        try:
            yield
        finally:
            self.model.set_attn_implementation(now)

    def _fastest(self) -> Loss:
        """The fastest way to the loss that this very model gives the right numbers on: tried on two rows,
        since a model may mix what passes through it in ways that its class does not tell."""
        generator = torch.Generator().manual_seed(0)
        size = int(self.model.get_input_embeddings().weight.shape[0])
        rows = [
            Sample(tuple(torch.randint(size, (length,), generator=generator).tolist()), (True,) * length)
            for length in (12, 7)
        ]
        tolerance = 1e-4 if self.setup.dtype == torch.float32 else 2e-2
        with self._resting(), torch.no_grad():
            wanted = sum(float(self._padded_loss([row])) for row in rows)
            for way in (self._hidden_loss, self._logit_loss):
                try:
                    use_rows(self.model)
                    if abs(float(way(rows)) - wanted) <= tolerance * abs(wanted):
                        return way
                except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, KeyError):
                    continue
        self.model.set_attn_implementation(self._own_attention)
        Progress.warn("this model cannot take several rows in one sequence; each row is padded instead.")
        return self._padded_loss

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.setup.device.type, self.setup.dtype, enabled=self._autocast)

    def _hidden_loss(self, samples: Sequence[Sample]) -> Tensor:
        """No padding, and no logits that are kept. Wants an output layer that is linear and frozen."""
        head = self.model.get_output_embeddings()
        if type(head) is not nn.Linear or head.weight.requires_grad:
            raise NotImplementedError("an output layer of its own kind")
        given = stream(samples, self.setup.device)
        with self._mixed():
            hidden = self.model.get_decoder()(
                input_ids=given.ids, position_ids=given.positions, use_cache=False, rows=given.rows
            ).last_hidden_state
        return cross_entropy(hidden[0].index_select(0, given.kept), head.weight, head.bias, given.labels)

    def _logit_loss(self, samples: Sequence[Sample]) -> Tensor:
        """No padding, and the model's own way to logits."""
        given = stream(samples, self.setup.device)
        with self._mixed():
            logits = self.model(
                input_ids=given.ids,
                position_ids=given.positions,
                use_cache=False,
                rows=given.rows,
                logits_to_keep=given.kept,
            ).logits
        return functional.cross_entropy(logits[0].float(), given.labels, reduction="sum")

    def _padded_loss(self, samples: Sequence[Sample]) -> Tensor:
        """The model's own attention over padded rows."""
        device = self.setup.device
        ids, mask, labels = collate(samples)
        wanted = (labels != IGNORED).any(dim=0).nonzero().flatten()
        with self._mixed():
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


class _GradientWatch:
    """Knows after the first backward which parameters got a gradient."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.names = set(parameters)
        self.seen: set[str] = set()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.seen.add(name))
            for name, parameter in parameters.items()
        ]

    def check(self) -> None:
        """Raises TrainerError for parameters without a gradient. An expert may have had no token."""
        for hook in self._hooks:
            hook.remove()
        without = sorted(name for name in self.names - self.seen if "expert" not in name)
        if without:
            raise TrainerError(
                f"{len(without)} of {len(self.names)} parameters of the adapter got no gradient in the first "
                f"step (the first: {without[0]}).",
                "They would stay untrained. Take their layers out of target_modules, or set "
                "gradient_checkpointing: false.",
            )


def _checkpoint(model: Any) -> None:
    """Non-reentrant: the reentrant kind gives no gradient behind a frozen embedding."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            [f"`gradient_checkpointing`: {error}"], "Set gradient_checkpointing: false."
        ) from None


def _still(model: nn.Module) -> None:
    """The frozen base drops nothing out: only the adapter learns, and a resumed run is exact."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


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
