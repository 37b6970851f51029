"""What clients may send. Unknown keys are refused, so that a misspelt `dry_run` never acts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Plan = Annotated[list[int], Field(max_length=100)]  # what a plan is, lora_ops.state.check_plan says
Text = Annotated[str, Field(max_length=2000)]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decision(Body):
    """Who does it, and why. `actor` is a name, not a proof."""

    reason: Text = ""
    actor: Annotated[str, Field(max_length=200)] = ""
    dry_run: bool = False

    @property
    def signed(self) -> str:
        """The actor as the journal names it."""
        return self.actor or "api"


class Steer(Decision):
    """A decision about a rollout. `wave`: the approved one, counted from 0; by default the present one."""

    wave: Annotated[int, Field(ge=0)] | None = None


class Drain(Decision):
    """Emptying a cloud; `keep_running`: what runs there goes on to its end."""

    keep_running: bool = False


class Deploy(Decision):
    """A release from a git checkout (`source`: its absolute path), one that is published (`release`), an
    `image` in a registry, or what a `pipeline` document says (its text; `pipeline_source`: its file's name).
    `image` beside `pipeline` is the digest that the document's container was resolved to before."""

    source: Annotated[str, Field(max_length=4096)] | None = None
    revision: Annotated[str, Field(max_length=250)] | None = None
    dirty: bool = False
    release: Annotated[str, Field(max_length=100)] | None = None
    image: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    pipeline: Annotated[str, Field(max_length=1_000_000)] | None = None
    pipeline_source: Annotated[str, Field(max_length=4096)] = "pipeline.json"
    canary: Literal[True] = True
    queue: bool = False
    plan: Plan | None = None


class Submit(Body):
    """A training: `config` is the YAML text, its relative paths are those of the folder `cwd`."""

    config: Annotated[str, Field(max_length=1_000_000)]
    source: Annotated[str, Field(max_length=4096)] = "config"
    cwd: Annotated[str, Field(max_length=4096)] = ""
    name: Annotated[str, Field(max_length=200)] = ""
    canary: Literal["auto", "never"] = "auto"
    cloud: Annotated[str, Field(max_length=40)] | None = None
    cloud_only: bool = False
    idempotency_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    actor: Annotated[str, Field(max_length=200)] = ""
    dry_run: bool = False
