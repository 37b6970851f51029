"""What `python -m trainer.generate` offers: draws that repeat, several prompts, documents, clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.language import Make, family_on
from trainer.errors import ModelError
from trainer.generate import talker
from trainer.models.base import RunFacts
from trainer.models.llm_answer import Sampling

ROOT = Path(__file__).parents[2]


def test_a_seed_repeats_its_draw_and_another_gives_another(tiny_lm: Path, cache_dir: Path) -> None:
    import torch

    speaker = talker(tiny_lm, cache_dir)
    drawn = [
        speaker.answer("hi", Sampling(max_new_tokens=12, temperature=1.5, seed=seed)) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    state = torch.random.get_rng_state()
    speaker.answer("hi", Sampling(max_new_tokens=2, temperature=1.0))
    assert torch.equal(state, torch.random.get_rng_state())
    narrow = Sampling(max_new_tokens=12, temperature=1.5, top_k=1, seed=5)
    assert speaker.answer("hi", narrow) == speaker.answer("hi", Sampling(max_new_tokens=12))


def test_a_document_goes_on_without_a_template(tiny_lm: Path, cache_dir: Path) -> None:
    speaker = talker(tiny_lm, cache_dir)
    speaker.tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert isinstance(speaker.answer("once upon", Sampling(max_new_tokens=3), raw=True), str)
    with pytest.raises(ModelError, match="never"):
        speaker.answer("once upon")


def test_the_adapters_own_chat_template_is_used(text_config: Make, tmp_path: Path, cache_dir: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    family = family_on(text_config(chat_template=file))
    family.export(tmp_path / "out", RunFacts())
    speaker = talker(Path(family.config.base_model), cache_dir)
    speaker.adapt(tmp_path / "out")
    assert speaker.tokenizer.chat_template == file.read_text()


def test_several_prompts_are_answered_in_order(tiny_lm: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("two\n\nthree\n")
    command = [sys.executable, "-m", "trainer.generate", "--base-model", str(tiny_lm), "--json"]
    command += ["--prompt", "one", "--prompts-file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "--prompt or --prompts-file"),
        (["--prompt", "a", "--compare"], "--compare wants --adapter"),
        (["--prompt", "a", "--temperature", "-1"], "less than 0"),
        (["--prompt", "a", "--top-p", "2"], "--top-p"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.generate import main

    with pytest.raises(SystemExit):
        main(["--base-model", "x", *words])
    assert what in capsys.readouterr().err
