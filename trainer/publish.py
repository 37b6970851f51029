"""The end of a run: the best weights, their files, the loss curve, the card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import card, curve, samples
from trainer.models.base import Family
from trainer.optim.state import Optimizer
from trainer.results import describe_files
from trainer.versions import versions

if TYPE_CHECKING:
    from trainer.loop import LoRATrainer

CURVE = "loss_curve.png"


def publish(run: LoRATrainer, family: Family, optimizer: Optimizer, loss: float | None) -> dict[str, Any]:
    """Write everything below the output folder; the fields of the `result` event."""
    config, out, journal = run.config, run.config.output_dir, run.journal
    step = _load_best(run, optimizer)
    facts = run.facts(step)
    files = family.export(out, facts)
    train, held_out = curve.read_losses(run.events.path)
    picture = curve.draw(out / CURVE, train, held_out, out.absolute().name)
    if loss is None and run.step in train:
        loss = train[run.step]
    shown = _samples(out, step)
    written = card.write(
        out,
        config,
        facts,
        base={**run.start_facts["base_model"]},
        versions=versions(),
        losses={"loss at the last step": loss, "best validation loss": journal.best_loss},
        files=files,
        samples=shown,
        curve=picture,
    )
    everything = [*files, *shown, written, *([picture] if picture else [])]
    best = {"best_step": journal.best_step, "best_loss": journal.best_loss} if journal.best_step else {}
    return {"step": run.step, "loss": loss, "files": describe_files(out, everything), **best}


def _load_best(run: LoRATrainer, optimizer: Optimizer) -> int:
    """Put the weights of the best validation loss into the model, if that is wanted; their step."""
    best = run.journal.best_step
    if not run.config.keep_best or best in (0, run.step):
        return run.step
    if not optimizer.best:
        run.warn(f"keep_best: the weights of step {best} were not kept at its time; published are the last.")
        return run.step
    optimizer.take_best()
    return best


def _samples(out: Path, step: int) -> list[Path]:
    """Those of the published step, else the latest of the run."""
    folder = samples.folder_of(out, step)
    if not folder.is_dir():
        all_of_them = sorted(p for p in (out / samples.FOLDER).glob("step-*") if p.is_dir())
        before = [p for p in all_of_them if int(p.name[5:]) <= step]
        if not before:
            return []
        folder = before[-1]
    return sorted(path for path in folder.rglob("*") if path.is_file())
