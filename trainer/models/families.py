"""Which family trains a base model. A new one is one module and one line here, or one file of a plugin."""

from __future__ import annotations

from importlib import import_module

from trainer.models.base import Family, Setup
from trainer.plugins import registered

BUILT_IN: dict[str, tuple[str, str]] = {
    "sd15": ("trainer.models.sd", "StableDiffusion"),
    "sd2": ("trainer.models.sd", "StableDiffusion"),
    "sdxl": ("trainer.models.sdxl", "StableDiffusionXL"),
    "causal-lm": ("trainer.models.llm", "CausalLM"),
}
"""The name that `sniff` gives, the module, the class."""


def family_of(setup: Setup) -> Family:
    """The family that trains `setup.base`. Imports only that one."""
    name = setup.base.family
    if setup.base.format == "plugin":
        made: Family = registered("family")[name](setup)
        return made
    module, kind = BUILT_IN[name]
    built: Family = getattr(import_module(module), kind)(setup)
    return built
