"""`lora-ops cloud add` and `lora-ops cloud check`: kubernetes clouds, made ready and looked over."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.local.platform import SpecOption, YesOption, find_local
from lora_ops.cloud_spec import KUBERNETES, Provider
from lora_ops.errors import ConfigError, NotFoundError, UsageError, nearest

if TYPE_CHECKING:
    from tasks.cluster.checks import Check

NAME_WIDTH = 22

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Text = str | None


def _option(text: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, show_default=False)


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The cloud's name.", show_default=False)],
    context: Annotated[Text, _option("The context of your kubeconfig.", "CTX")] = None,
    namespace: Annotated[Text, _option("The namespace of its Jobs.", "NS")] = None,
    registry: Annotated[Text, _option("Its registry; else `image.repository` serves it.", "R")] = None,
    size: Annotated[int | None, _option("Attempts of a track at once.", "N")] = None,
    share: Annotated[float | None, _option("Its weight among the clouds.", "P")] = None,
    provider: Annotated[Provider | None, typer.Option(help="Whose cluster it is.")] = None,
    pull_secret: Annotated[Text, _option("The secret of a private registry.", "SECRET")] = None,
    env_from: Annotated[
        list[str] | None, _option("A secret with credentials for its pods; again for more.", "SECRET")
    ] = None,
    prefect_api_url: Annotated[
        Text, _option("Prefect's API as its pods reach it; else `prefect.api_url`.", "URL")
    ] = None,
    gpu: Annotated[int | None, _option("GPUs of an attempt.", "N")] = None,
    image: Annotated[Text, _option("The worker's image while there is no release yet.", "REF")] = None,
    no_apply: Annotated[
        bool, typer.Option("--no-apply", help="Leave its manifests to whoever applies them.")
    ] = False,
    spec: SpecOption = None,
    as_json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change.")] = False,
    yes: YesOption = False,
) -> int:
    """Add a kubernetes cloud, or change one: lora-ops.yaml, work pool, worker; then check all of it.

    It gets requests once its checks pass. Run it again to heal: only the options that you give change.
    """
    from cli.local.cloud_setup import Setup
    from tasks.cluster.entry import with_cloud, write_whole

    given = {
        "kind": KUBERNETES,
        "context": context,
        "namespace": namespace,
        "registry": registry,
        "size": size,
        "share": share,
        "provider": provider,
        "pull_secret": pull_secret,
        "env_from": env_from or None,
        "prefect_api_url": prefect_api_url,
        "resources": None if gpu is None else {"gpu": gpu},
    }
    path, text = _read(spec)
    changed = with_cloud(
        text, str(path), name, {key: value for key, value in given.items() if value is not None}
    )
    diff = list(
        difflib.unified_diff(text.splitlines(), changed.splitlines(), str(path), str(path), lineterm="")
    )
    if dry_run:
        return _show(name, diff, as_json, no_apply)
    report = Report(as_json)
    if changed != text:
        write_whole(path, changed)
        report.say(f"wrote {path}")
    setup = Setup(find_local(path), name, report.say)
    try:
        report.add(name, setup.prepare(image, apply=not no_apply))
        report.add(name, setup.checks())
        if report.ok:
            report.add(name, setup.put_into_service())
    finally:
        setup.close()
    return report.end()


def check(
    name: Annotated[
        Text, typer.Argument(metavar="[NAME]", help="One cloud; else all.", show_default=False)
    ] = None,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check clouds, from the kubeconfig to a pod that reaches store and Prefect. Exits 1 when one fails."""
    from cli.local.cloud_setup import Setup

    local = find_local(spec)
    if name is not None and name not in local.spec.clouds:
        raise NotFoundError(f"there is no cloud `{name}`.", nearest(name, local.spec.clouds))
    wanted = [name] if name is not None else list(local.spec.clouds)
    if not local.spec.on_kubernetes:
        raise UsageError("this platform's clouds are on this machine.", "`lora-ops doctor` checks those.")
    report = Report(as_json)
    for each in wanted:
        setup = Setup(local, each, report.say)
        try:
            report.add(each, setup.checks())
        finally:
            setup.close()
    return report.end()


class Report:
    """Findings, a line each as they come; or one JSON document at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._found: dict[str, list[Check]] = {}

    @property
    def ok(self) -> bool:
        return all(each.status != "failed" for found in self._found.values() for each in found)

    def say(self, line: str) -> None:
        """Progress, which is no finding."""
        print(line, file=sys.stderr, flush=True)

    def add(self, cloud: str, checks: Iterable[Check]) -> None:
        if cloud not in self._found and not self._as_json:
            print(cloud)
        found = self._found.setdefault(cloud, [])
        for each in checks:
            found.append(each)
            if not self._as_json:
                self._print(each)

    def end(self) -> int:
        """The exit status; prints the document that `--json` asked for."""
        if self._as_json:
            from cli.session import print_json

            clouds = {name: [asdict(each) for each in found] for name, found in self._found.items()}
            print_json({"ok": self.ok, "clouds": clouds})
        return 0 if self.ok else 1

    def _print(self, check: Check) -> None:
        from cli.text import paint

        word = {"ok": "ok", "warning": "warning", "failed": "failed"}[check.status]
        print(f"  {paint(word)}{' ' * (8 - len(word))}{check.name:<{NAME_WIDTH}}  {check.found}", flush=True)
        if check.status != "ok" and check.remedy:
            print(f"  {'':<8}{'':<{NAME_WIDTH}}  -> {check.remedy}", flush=True)


def _read(spec: Path | None) -> tuple[Path, str]:
    """The spec as text: before its first cloud it is none yet."""
    from tasks.specs import find_spec

    path = spec.absolute() if spec is not None else find_spec()
    try:
        return path, path.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = "Write one with `lora-ops init`."
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None


def _show(name: str, diff: list[str], as_json: bool, no_apply: bool) -> int:
    would = ["write lora-ops.yaml"] if diff else []
    would += [
        f"create or update the work pool {name}",
        *([] if no_apply else ["apply the worker's manifests"]),
    ]
    would += ["check everything", "put it into service"]
    if as_json:
        from cli.session import print_json

        print_json({"diff": diff, "would": would})
    else:
        print("\n".join([*diff, *(f"would {each}" for each in would)]))
    return 0
