"""`lora-ops help [TOPIC]`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli.registry import overview
from lora_ops.errors import UsageError, nearest

TOPICS = {
    "environment": """\
LORA_OPS_SERVER   address of `lora-ops serve`; --server goes before it, the `serve` section of the nearest
                  lora-ops.yaml after it, then http://127.0.0.1:8700
LORA_OPS_TOKEN    the token that `serve` was given
LORA_OPS_SPEC     the lora-ops.yaml to use; by default the nearest from here upwards
LORA_OPS_HOME     what this machine keeps; by default .lora-ops beside lora-ops.yaml
LORA_OPS_CACHE    the trainer's cache: converted models, latents, embeddings
WANDB_API_KEY     W&B logs online; without it offline
NO_COLOR          no colour, whatever its value""",
    "exit-codes": """\
0    done; a followed rollout was promoted, a followed request succeeded
1    failed; a followed rollout was aborted or failed
2    wrong usage, or the answer to a question was no
3    a file of yours is wrong
4    not signed in, or not allowed
5    an unknown id
6    a conflict: another rollout is active, or it no longer is in that state
7    the server, the store or Prefect does not answer
8    an approval is awaited
9    rolled back
100  train --wait, runs watch: the request failed
101  the same: not finished when --timeout was over
102  the same: no such request
103  the same: cancelled
130  Ctrl-C. What was followed goes on; the text says how to come back""",
    "formatting": """\
--json    one document with `schema_version` on stdout, all else on stderr; times are ISO-8601 in UTC.
          An error is {"error": {"kind", "message", "hint", "exit_code", "details"}}
-q        ids only, one a line
Followed things (watch, --wait, logs -f) are a live picture on a terminal and one line a change elsewhere.
On a terminal deploy, promote, reject, rollback, abort, cancel and drain ask first; --yes answers. Off a
terminal deploy goes on, and the others need --yes. --dry-run changes nothing and never asks.""",
}


def topic(
    name: Annotated[
        str | None, typer.Argument(metavar="[TOPIC]", help=", ".join(TOPICS), show_default=False)
    ] = None,
) -> None:
    """Help on a topic: environment, exit-codes, formatting."""
    if name is not None and name not in TOPICS:
        raise UsageError(f"There is no help topic `{name}`.", nearest(name, TOPICS))
    sys.stdout.write((overview() if name is None else TOPICS[name]) + "\n")
