"""`python -m trainer convert IN OUT`: one LoRA format into another, what it does unchanged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import EXIT_OK, UserError, explain
from trainer.export.names import Family
from trainer.export.tell import Format, tell

if TYPE_CHECKING:
    from trainer.lora import Adapter


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 3 for what cannot be converted."""
    args = _parse(argv)
    try:
        written = convert(
            args.source, args.target, to=args.to, family=args.family, rank=args.rank, force=args.force
        )
    except Exception as error:  # noqa: BLE001 - the last line of defence: every failure is explained
        known = explain(error, "convert")
        print(f"error: {known}", file=sys.stderr)
        return known.exit_code
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return EXIT_OK


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer convert",
        description="Turn a LoRA of one format into another; alpha, DoRA and metadata are kept.",
    )
    parser.add_argument("source", type=Path, help="a .safetensors file or an adapter folder")
    parser.add_argument("target", type=Path, help="the file to write; for peft, a folder")
    parser.add_argument("--to", choices=("kohya", "diffusers", "peft"), help="unset: told from both names")
    parser.add_argument("--family", choices=("sd1", "sd2", "sdxl"), help="where the file does not tell it")
    parser.add_argument("--rank", type=int, help="reduce LoRA to this rank (SVD of each module)")
    parser.add_argument("--force", action="store_true", help="write over an existing target")
    return parser.parse_args(argv)


def convert(
    source: Path,
    target: Path,
    *,
    to: Format | None = None,
    family: Family | None = None,
    rank: int | None = None,
    force: bool = False,
) -> list[Path]:
    """Write `target`, read it back and compare; the files written. Without `to`, a path without .safetensors
    becomes a peft folder, pytorch_lora_weights.safetensors and what a kohya file becomes a diffusers file,
    anything else a kohya file. Raises UserError, ModelError, or TrainerError if the file came out wrong."""
    told = tell(source)
    if "" in told.shapes and (rank is None or to not in (None, "peft")):
        raise UserError(
            f"{source} is the adapter of a language model: peft's format is the only one it has.",
            "`python -m trainer inspect` shows it; --rank N writes it again with another rank.",
        )
    to = to or _wanted(target, told.format)
    if "" in told.shapes and to != "peft":
        raise UserError(f"{target} is a file, but a peft adapter is a folder.", "Name a folder.")
    if told.unknown and told.format == "peft":
        some = ", ".join(told.unknown[:5])
        raise UserError(
            f"{source} holds {len(told.unknown)} keys that no other format has: {some}.",
            "Adapters with whole modules (modules_to_save) cannot be converted.",
        )
    if rank is not None and rank < 1:
        raise UserError(f"--rank is {rank}: it is at least 1.")
    if target.exists() and not force:
        raise UserError(f"{target} exists.", "Name another, or add --force to write over it.")
    if target.exists() and source.resolve() == target.resolve():
        raise UserError(f"{target} is the source itself.", "Name another.")
    if not target.parent.is_dir():
        raise UserError(f"The folder {target.parent} does not exist.", "Make it first.")
    if family is None:
        family = told.family
    if to == "kohya" and family is None:
        raise UserError(
            f"{source} does not tell which Stable Diffusion it is for, and the names depend on it.",
            "Add --family sd1, sd2 or sdxl.",
        )
    return _write(source, target, to, family, rank)


def _wanted(target: Path, found: Format) -> Format:
    if target.suffix.lower() != ".safetensors":
        return "peft"
    if target.name == "pytorch_lora_weights.safetensors" or found == "kohya":
        return "diffusers"
    return "kohya"


def _write(source: Path, target: Path, to: Format, family: Family | None, rank: int | None) -> list[Path]:
    from trainer.export import diffusers, kohya
    from trainer.export.kohya_metadata import network_keys
    from trainer.export.names import naming
    from trainer.export.read import read
    from trainer.export.resize import resized
    from trainer.export.verify import check

    found = read(source)
    adapters: Mapping[str, Adapter] = found.adapters
    if rank is not None:
        adapters = {component: resized(adapter, rank) for component, adapter in adapters.items()}
    if to == "peft":
        return _write_peft(target, adapters, str(found.config.get("base_model_name_or_path") or ""))
    kept = _kept(found.metadata)
    target_names = naming(family or "sd1")
    if to == "diffusers":
        diffusers.save_file(target, adapters, kept)
        check(target, adapters, read(target).adapters)
        return [target]
    tensors = {}
    for component, adapter in adapters.items():
        tensors.update(kohya.to_kohya(component, adapter, target_names))
    told = {"ss_output_name": target.stem, "modelspec.title": target.stem, **_told(family, kept)}
    kohya.save(target, tensors, {**told, **network_keys(adapters)})
    check(target, adapters, read(target, target_names).adapters)
    return [target]


def _told(family: Family | None, kept: Mapping[str, str]) -> dict[str, str]:
    """`kept` with what says the base model: its own word for it, unless the tensors are another family's."""
    from trainer.export.kohya_metadata import base_keys

    assert family is not None
    version = kept.get("ss_base_model_version", "")
    v_prediction = kept.get("modelspec.prediction_type") == "v" or version.endswith("_v")
    base = base_keys(family, v_prediction=v_prediction)
    own = version.startswith({"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl"}[family])
    return {**base, **kept} if own else {**kept, **base}


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that stays true in another format."""
    dropped = (
        "format",
        "lora_adapter_metadata",
        "sshs_model_hash",
        "sshs_legacy_hash",
        "modelspec.hash_sha256",
    )
    return {key: value for key, value in metadata.items() if key not in dropped}


def _write_peft(target: Path, adapters: Mapping[str, Adapter], base_model: str) -> list[Path]:
    from trainer.export import peft
    from trainer.export.names import flat
    from trainer.lora import Adapter

    written: list[Path] = []
    for component, adapter in adapters.items():
        if any(layer.kind == "lokr" for layer in adapter.layers.values()) and component:
            raise UserError(
                "peft builds LoKr from its own factors, which are not those of every file.",
                "Keep the kohya file; A1111 and ComfyUI read it.",
            )
        folder = target / component if component else target
        folder.mkdir(parents=True, exist_ok=True)
        layers = {flat(component, module): layer for module, layer in adapter.layers.items()}
        written += peft.save(folder, Adapter(layers, adapter.description, adapter.rslora), base_model)
    return written
