"""`python -m trainer inspect FILE`: what a LoRA file, an adapter folder or a base model is. Reads headers
only; imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import EXIT_OK, TrainerError, UserError
from trainer.export.tell import Told, tell
from trainer.export.warn import warnings_of
from trainer.models.sniff import sniff

_FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
_SHORT = (
    "ss_output_name",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_args",
    "ss_sd_model_name",
    "ss_num_train_images",
    "ss_steps",
    "modelspec.architecture",
    "modelspec.trigger_phrase",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 3 for a file that is neither a LoRA nor a base model."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer inspect", description="Tell what a LoRA file or a base model is."
    )
    parser.add_argument("file", type=Path, help="a .safetensors or .gguf file, or a folder")
    parser.add_argument("--json", action="store_true", help="everything, with all metadata, as JSON")
    args = parser.parse_args(argv)
    try:
        facts = inspect(args.file)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else text(facts))
    return EXIT_OK


def inspect(path: Path) -> dict[str, Any]:
    """The facts as plain JSON values: `what` is `lora` or `base model`. Raises UserError or ModelError."""
    try:
        return facts_of(tell(path))
    except UserError as no_lora:
        if type(no_lora) is not UserError or not path.exists():
            raise
        try:
            base = sniff(path)
        except TrainerError as no_base:
            if "LoRA" in no_base.message and "no LoRA" not in no_lora.message:
                raise no_lora from None
            raise UserError(f"{no_lora.message} As a base model: {no_base.message}", no_base.hint) from None
        return {
            "what": "base model",
            "path": str(path),
            "family": base.family,
            "format": base.format,
            "trains": base.kind,
        }


def facts_of(told: Told) -> dict[str, Any]:
    """What `tell` has found, counted and judged."""
    pairs = [(component, module) for component, modules in told.shapes.items() for module in modules]
    ranks = Counter(str(told.rank(*pair) or "full") for pair in pairs)
    alphas = Counter(
        "none" if (alpha := told.alphas.get(c, {}).get(m)) is None else f"{alpha:g}" for c, m in pairs
    )
    return {
        "what": "lora",
        "path": str(told.path),
        "format": told.format,
        "family": told.family or ("language model" if "" in told.shapes else "unknown"),
        "kind": kind_of(told),
        "rank": dict(ranks.most_common()),
        "alpha": dict(alphas.most_common()),
        "scale": dict(Counter(f"{told.scale(*pair):g}" for pair in pairs).most_common()),
        "rslora": told.rslora,
        "modules": {component or "model": len(modules) for component, modules in told.shapes.items()},
        "dtype": dict(told.dtypes),
        "bytes": told.size,
        "tool": tool_of(told),
        "warnings": warnings_of(told),
        "unknown_keys": list(told.unknown),
        "metadata": told.metadata,
        "config": told.config,
    }


def kind_of(told: Told) -> str:
    """`lora`, `locon` (with convolutions larger than 1x1), `dora`, `loha`, `lokr`, or several joined by +."""
    layers = [parts for modules in told.shapes.values() for parts in modules.values()]
    kinds = set(told.kinds) - {"lora"}
    if "lora" in told.kinds:
        if any("magnitude" in parts for parts in layers):
            kinds.add("dora")
        if any(len(parts.get("down", ())) == 4 and max(parts["down"][2:]) > 1 for parts in layers):
            kinds.add("locon")
    return "+".join(sorted(kinds)) or "lora"


def tool_of(told: Told) -> str:
    """Who wrote the file, as far as its metadata tells."""
    meta = told.metadata
    if "lora_ops_version" in meta:
        return f"lora-ops {meta['lora_ops_version']}"
    if "software" in meta:
        try:
            software = json.loads(meta["software"])
            return f"{software['name']} {software.get('version', '')}".strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            return meta["software"][:80]
    if any(key.startswith("ot_") for key in meta):
        return "OneTrainer"
    if "ss_sd_scripts_commit_hash" in meta or "ss_network_module" in meta:
        return "kohya sd-scripts, or a tool that writes its metadata"
    if "lora_adapter_metadata" in meta:
        return "diffusers, or a tool that writes its metadata"
    if told.config:
        return f"peft {told.config['peft_version']}" if "peft_version" in told.config else "peft"
    return "unknown"


def text(facts: dict[str, Any]) -> str:
    """The facts for a reader, the metadata in short."""
    if facts["what"] == "base model":
        return f"{facts['path']}\n  base model: {facts['family']} ({facts['format']})"
    family = _FAMILIES.get(facts["family"], facts["family"])
    ranks, alphas, scales = (_counted(facts[key]) for key in ("rank", "alpha", "scale"))
    rslora = " (rsLoRA)" if facts["rslora"] else ""
    lines = [
        facts["path"],
        f"  {facts['kind']} for {family}, {facts['format']} format, {facts['bytes'] / 1e6:.2f} MB",
        f"  rank {ranks}, alpha {alphas}, applied at scale {scales}{rslora}",
        "  modules: " + ", ".join(f"{name} {count}" for name, count in facts["modules"].items()),
        f"  numbers: {_counted(facts['dtype'])}",
        f"  written by: {facts['tool']}",
    ]
    base = facts["config"].get("base_model_name_or_path")
    if base:
        lines.append(f"  base model: {base}")
    lines += [f"  {key}: {facts['metadata'][key][:100]}" for key in _SHORT if key in facts["metadata"]]
    lines += [f"  warning: {warning}" for warning in facts["warnings"]]
    return "\n".join(lines)


def _counted(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    shown = [f"{value} ({count}x)" for value, count in list(counts.items())[:4]]
    return ", ".join(shown) + (", ..." if len(counts) > 4 else "")
