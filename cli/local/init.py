"""`lora-ops init`: a commented lora-ops.yaml to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.local.platform import YesOption
from lora_ops.errors import ConflictError

TEMPLATE = """\
# The platform. `lora-ops up` starts it on this machine; every key and its default: docs/operations.md.
app: {app}
store: file://.lora-ops/store          # or s3://bucket/folder, gs://…, az://…
prefect:
  api_url: http://127.0.0.1:4200/api   # started by `up` when it is on this machine
serve: {{host: 127.0.0.1, port: 8700}}   # another host needs LORA_OPS_TOKEN
clouds:                                # one Prefect work pool each
  east: {{kind: local, size: 1, share: 1}}
  west: {{kind: local, size: 1, share: 1}}
rollout:
  steps: [10, 25, 50, 100]             # canary weights in percent; [0, 100] is blue/green
  waves: [[east], [west]]              # the clouds of a wave are judged and promoted together
  gates:
    - {{metric: error_rate, limit: 5%}}
  harmful: 30%                         # a release this bad passes with probability at most 5 %
  confidence: 99%                      # a release within its limits is rolled back at most 1 time in 100
  lease: 60s                           # without a look for so long, the canary gets nothing any more
  hold: 10m                            # how long the gates go on judging after the promotion
{probes}requests:
  stall_deadline: 30m                  # a trainer that tells, prints and saves nothing for so long is ended
"""

PROBES = """\
  probes:                              # small trainings that the rollout submits itself
    config: {config}
"""


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write lora-ops.yaml.")] = Path("."),
    probe: Annotated[
        Path | None, typer.Option(help="A small trainer config for probes.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print it instead.")] = False,
    yes: YesOption = False,
) -> None:
    """Write lora-ops.yaml: two clouds on this machine, a careful rollout, a comment on every key."""
    import os

    from lora_ops.spec import parse_spec

    target = folder / "lora-ops.yaml"
    probes = PROBES.format(config=os.path.relpath(probe, folder)) if probe is not None else ""
    text = TEMPLATE.format(app="lora-training", probes=probes)
    parse_spec(text, str(target))
    if dry_run:
        print(text, end="")
        return
    if target.exists() and not force:
        raise ConflictError(f"{target} exists already.", "Edit it, or replace it with --force.")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, target)
    print(f"wrote {target}. Next: lora-ops up")
