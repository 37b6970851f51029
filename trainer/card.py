"""`model_card.md`: what was trained, on what, with which versions; no dates, so that the same run writes the
same card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.files import write_atomic
from trainer.models.base import RunFacts

NAME = "model_card.md"
_HERE = {"output_dir", "cache_dir", "tracker", "resume", "checkpoint_url", "log_every", "cache_limit_gb"}
"""Keys that say where the run was, and nothing of what came out."""


def write(
    folder: Path,
    config: TrainConfig,
    facts: RunFacts,
    *,
    base: Mapping[str, Any],
    versions: Mapping[str, str],
    losses: Mapping[str, float | None],
    files: Sequence[Path],
    samples: Sequence[Path],
    curve: Path | None,
) -> Path:
    """Write the card to `folder`. `base`: path, family and digest; `losses`: by name, None where unknown."""
    name = folder.absolute().name
    parts = [
        f"# {name}",
        f"A {config.adapter} adapter of rank {config.lora_rank} (alpha {config.alpha:g}) on "
        f"`{Path(str(base['path'])).name}` ({base['family']}), trained for {facts.steps} steps"
        + (
            f"; published is step {facts.step}, the best by validation loss."
            if facts.step < facts.steps
            else "."
        )
        + f" The dataset has {facts.samples} samples.",
    ]
    if config.trigger_word:
        parts.append(f"Trigger word: `{config.trigger_word}`")
    parts.append(
        _table("Result", {key: f"{value:.6g}" for key, value in losses.items() if value is not None})
    )
    if curve is not None:
        parts.append(f"![loss]({curve.relative_to(folder).as_posix()})")
    if samples:
        parts += ["## Samples", *_samples(folder, config.sample_prompts, samples)]
    parts.append("## Files\n\n" + "\n".join(f"- `{f.relative_to(folder).as_posix()}`" for f in sorted(files)))
    parts.append(
        _table(
            "Lineage",
            {
                "base model": str(base["digest"]),
                "dataset": facts.dataset_digest,
                "config": facts.config_hash,
                **versions,
            },
        )
    )
    parts.append(f"## Config\n\n```yaml\n{_yaml(config)}```")
    target = folder / NAME
    write_atomic(target, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return target


def _yaml(config: TrainConfig) -> str:
    """The keys that were given; of paths only the names."""
    import yaml

    values = config.model_dump(mode="json", include=config.model_fields_set - _HERE)
    for key in values:
        if isinstance(path := getattr(config, key), Path):
            values[key] = path.name
        elif key == "plugins":
            values[key] = [file.name for file in config.plugins]
    return yaml.safe_dump(values, sort_keys=True, allow_unicode=True)


def _table(title: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = "\n".join(f"| {key} | `{value}` |" for key, value in rows.items())
    return f"## {title}\n\n| | |\n|---|---|\n{lines}"


def _exchange(said: Mapping[str, str]) -> str:
    """A prompt and its answer."""
    return f"**{said['prompt']}**\n\n> " + said["answer"].strip().replace("\n", "\n> ")


def _samples(folder: Path, prompts: Sequence[str], samples: Sequence[Path]) -> list[str]:
    shown = []
    for number, path in enumerate(sorted(samples)):
        prompt = prompts[number] if number < len(prompts) and len(samples) == len(prompts) else ""
        place = path.relative_to(folder).as_posix()
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            shown.append(
                f"![{prompt.replace(']', ')') or path.stem}]({place})" + (f"\n\n{prompt}" if prompt else "")
            )
        elif path.suffix.lower() == ".json":
            shown += [_exchange(said) for said in json.loads(path.read_text(encoding="utf-8"))]
        else:
            quoted = path.read_text(encoding="utf-8").strip().replace("\n", "\n> ")
            shown.append((f"**{prompt}**\n\n" if prompt else "") + f"> {quoted}")
    return shown
