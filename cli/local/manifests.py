"""`lora-ops manifests render`: the Kubernetes manifests of a lora-ops.yaml, for GitOps."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from cli.local.platform import SpecOption
from lora_ops.errors import ConfigError, UsageError

FOR_IMAGE = "repository@sha256:…"


def render(
    spec: SpecOption = None,
    cloud: Annotated[str | None, typer.Option(help="Only this cloud's.", metavar="NAME")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a file a cloud into this folder.", metavar="DIR")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="The workers' image; without it their Deployments are left out.", metavar=FOR_IMAGE
        ),
    ] = None,
    serve_image: Annotated[
        str | None,
        typer.Option(help="Also serve and the control workers, from this image.", metavar=FOR_IMAGE),
    ] = None,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            help="A network (CIDR) that pods may reach; again for more. Default: all.", metavar="CIDR"
        ),
    ] = None,
    pdb: Annotated[
        bool, typer.Option("--pdb/--no-pdb", help="Disruption budgets (Kubernetes 1.21 and newer).")
    ] = True,
) -> None:
    """Print the Kubernetes manifests of the spec: the same spec gives the same text."""
    from tasks import manifests
    from tasks.specs import find_spec, load_spec

    path = spec.absolute() if spec is not None else find_spec()
    loaded = load_spec(path)
    networks = [_network(each) for each in egress or ()]
    files = manifests.render(loaded, image, only=cloud, egress=networks)
    if serve_image is not None:
        manifests.pinned(serve_image)
        text = path.read_text(encoding="utf-8-sig")
        files["serve.yaml"] = manifests.serve_manifests(text, serve_image, egress=networks, budgets=pdb)
    if image is None:
        print("without the workers' Deployments: no --image", file=sys.stderr)
    if out is None:
        for documents in files.values():
            print(manifests.dump(documents), end="")
        return
    for name, documents in files.items():
        _write(out / name, manifests.dump(documents))
        print(out / name)


def _network(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise UsageError(f"--egress {text}: {error}.", "Give a network such as 10.0.0.0/8.") from None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", "Name another --out.") from None
