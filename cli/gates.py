"""`lora-ops gate explain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.rollouts import newest, result_lines
from cli.session import Session
from cli.text import paint
from lora_ops.errors import UsageError
from lora_ops.gates.explain import explain_counts, explain_text
from lora_ops.units import fraction

RolloutId = Annotated[
    str | None,
    typer.Argument(metavar="[ROLLOUT]", help="Its id; without one the active rollout.", show_default=False),
]


def explain(
    session: Session,
    rollout: RolloutId = None,
    failures: Annotated[
        int | None, typer.Option("--failures", help="Bad samples.", show_default=False)
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="All samples.", show_default=False)] = None,
    limit: Annotated[
        str, typer.Option("--limit", help="Share of bad ones that a good release may have.")
    ] = "0.05",
    confidence: Annotated[
        str, typer.Option("--confidence", help="A good release is kept so surely.")
    ] = "0.99",
    harmful: Annotated[
        str | None,
        typer.Option("--harmful", help="Share of bad ones that must not pass.", show_default="0.3"),
    ] = None,
    pass_confidence: Annotated[
        str, typer.Option("--pass-confidence", help="A harmful release is stopped so surely.")
    ] = "0.95",
    tests: Annotated[int, typer.Option("--tests", min=1, help="Gates times clouds.")] = 1,
) -> None:
    """Counts, evidence, verdict, and how many more samples would decide.

    Of a rollout, or with --failures and --samples of bare numbers, offline. Shares are 0.05 or 5%.
    """
    if failures is None and samples is None:
        _of_rollout(session, rollout)
        return
    if failures is None or samples is None or rollout is not None:
        raise UsageError("Bare numbers need both --failures and --samples, and no rollout.")
    try:
        found = explain_counts(
            failures,
            samples,
            fraction(_number(limit)),
            fraction(_number(confidence)),
            None if harmful is None else fraction(_number(harmful)),
            tests,
            fraction(_number(pass_confidence)),
        )
    except ValueError as error:
        raise UsageError(
            f"These numbers cannot be judged: {error}.", "See `lora-ops gate explain --help`."
        ) from error
    session.emit(dict(found), [explain_text(found)])


def _of_rollout(session: Session, rollout: str | None) -> None:
    answer = session.api.get("/gates/explain", rollout=newest(session, rollout))
    verdict = str(answer.get("verdict"))
    lines = [f"rollout {answer.get('rollout')}: {paint(verdict)}", ""]
    results = answer.get("results") or []
    lines += [
        *result_lines(results),
        "",
        *(str(result["summary"]) for result in results if result.get("summary")),
        *_asked_lines(answer.get("asked") or []),
    ]
    session.emit(answer, lines)


def _asked_lines(asked: list[Any]) -> list[str]:
    """What the providers outside of the store were asked, and what they said."""
    lines: list[str] = []
    for each in asked:
        lines += [
            "",
            f"{each.get('cloud')}: {each.get('gate')} asked {each.get('provider')}:",
            f"  {each.get('query')}",
            f"  -> {each.get('answer')}",
        ]
    return lines


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
