"""`lora-ops doctor`: named checks of this machine and its platform, each with a remedy."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from cli.local.platform import Local, SpecOption, find_local
from lora_ops.errors import LoraOpsError

NEEDED = ("prefect", "torch", "diffusers", "transformers", "peft", "safetensors", "obstore", "fastapi")
FREE_GB = 5


@dataclass(frozen=True)
class Check:
    """One finding. `remedy` is the next step of a check that did not pass."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def doctor(
    spec: SpecOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> int:
    """Check this machine, the store, the journal and what `up` starts. Exits 1 when a check fails."""
    from cli.session import print_json

    checks = list(_all(spec))
    ok = all(check.ok for check in checks)
    if as_json:
        print_json({"ok": ok, "checks": [asdict(check) for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<{width}}  {check.found}")
            if not check.ok:
                print(f"      {'':<{width}}  -> {check.remedy}")
    return 0 if ok else 1


def _all(spec: Any) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", sys.version_info >= (3, 11), version, "Use Python 3.11 or newer.")
    yield from map(_package, NEEDED)
    try:
        local = find_local(spec)
    except LoraOpsError as error:
        yield Check("spec", False, " ".join([error.message, *error.details]), error.hint)
        return
    yield Check("spec", True, str(local.spec_path))
    free = shutil.disk_usage(local.spec_path.parent).free / 1e9
    yield Check("disk", free > FREE_GB, f"{free:.0f} GB free", f"Free some: training wants {FREE_GB} GB.")
    yield from _store(local)
    yield from _services(local)
    yield from _providers(local)


def _package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", "Run `make setup`.")


def _store(local: Local) -> Iterator[Check]:
    """The store honours create-only, and the journal's folded state is what its newest entry carries."""
    from lora_ops.rollout import replay
    from tasks.platform import Platform
    from tasks.store import open_store

    try:
        store = open_store(local.spec.store, prove=True)
        yield Check("store", True, f"{store.url}: create-only is honoured")
    except LoraOpsError as error:
        yield Check("store", False, error.message, error.hint)
        return
    try:
        platform = Platform(store, local.spec.app, "doctor")
        entries = platform.history()
        folded = replay(local.spec.app, [(e.document["kind"], e.document["data"]) for e in entries])
        same = folded == platform.state()
        found = f"{len(entries)} events, folded anew: {'equal' if same else 'DIFFERENT'}"
        yield Check("journal", same, found, "Do not deploy: report this with a copy of the journal.")
        clock = platform.clock
        yield Check(
            "clock", clock.ok, "offset from the store is known", "Without it no canary gets requests."
        )
        clock.close()
    except LoraOpsError as error:
        yield Check("journal", False, error.message, error.hint)


def _providers(local: Local) -> Iterator[Check]:
    """Each declared Prometheus answers, and holds our series."""
    from lora_ops.gates import answers
    from lora_ops.gates.promql import selector
    from tasks.metrics.prometheus import NoAnswer, Prometheus, QueryRefused

    for name, declared in local.spec.providers.items():
        provider = declared.record()
        series = selector("lora_ops_build_info", {**provider.labels, "app": local.spec.app})
        client = Prometheus(provider)
        try:
            seen = answers.one_number(client.query(f"count({series})"))
            yield Check(
                f"provider {name}",
                bool(seen),
                f"{provider.url}: {f'scrapes {seen:g} serve' if seen else f'has no series {series}'}",
                f"Let it scrape {local.serve_url}/metrics (deployments/prometheus/prometheus.yml).",
            )
        except NoAnswer as silence:
            remedy = f"Mend `providers.{name}`; gates that ask it are inconclusive, and leases run out."
            yield Check(f"provider {name}", False, str(silence), remedy)
        except (QueryRefused, ValueError) as error:
            remedy = f"Look at `providers.{name}.url`: it is the address without /api/v1."
            yield Check(f"provider {name}", False, f"{provider.url}: {error}", remedy)
        finally:
            client.close()


def _services(local: Local) -> Iterator[Check]:
    import httpx

    from tasks.daemons import Daemon

    def answers(url: str) -> Callable[[], bool]:
        def ask() -> bool:
            try:
                return httpx.get(url, timeout=3).status_code == 200
            except httpx.HTTPError:
                return False

        return ask

    prefect = answers(f"{local.prefect_url}/health")()
    yield Check("prefect", prefect, local.prefect_url, "Run `lora-ops up`.")
    for pool in ("control", *local.spec.clouds):
        daemon = Daemon(f"worker-{pool}", local.base)
        runs = daemon.process() is not None
        yield Check(
            f"worker {pool}",
            runs,
            "runs" if runs else f"does not run; log: {daemon.log}",
            "Run `lora-ops up`.",
        )
    yield Check("serve", answers(f"{local.serve_url}/healthz")(), local.serve_url, "Run `lora-ops up`.")
