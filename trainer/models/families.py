"""Which family trains a base model. A new family is one module, and one line here."""

from __future__ import annotations

from trainer.models.base import Family, Setup


def family_of(setup: Setup) -> Family:
    """The family that trains `setup.base`. Imports only that one."""
    if setup.base.kind == "images":
        from trainer.models.sd import StableDiffusion

        return StableDiffusion(setup)
    from trainer.models.llm import CausalLM

    return CausalLM(setup)
