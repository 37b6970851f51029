"""`lora-ops serve`: the API, `/metrics` and the reconciler, in the foreground."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from cli.local.platform import SpecOption, find_local, use_prefect
from lora_ops.errors import ConflictError

TOKEN_ENV = "LORA_OPS_TOKEN"


def serve(
    spec: SpecOption = None,
    host: Annotated[str | None, typer.Option(help="Where to listen; any but loopback needs a token.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.", min=1, max=65535)] = None,
) -> None:
    """Run the API, /metrics and the reconciler until Ctrl-C. Any number may run beside each other."""
    local = find_local(spec)
    where, at = host or local.spec.serve.host, port or local.spec.serve.port
    from console.auth import check_bind
    from tasks.daemons import port_taken

    token = os.environ.get(TOKEN_ENV) or None
    check_bind(where, token)
    if port_taken(where, at):
        raise ConflictError(
            f"port {at} is in use.",
            "Stop what listens there, or choose another with `--port` or `serve.port`.",
        )
    use_prefect(local)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    import uvicorn

    from console.app import create_app
    from console.context import ServeContext
    from flows.clusters import Clusters
    from flows.reconciler import Reconciler
    from tasks.backup import Mirror, open_backup
    from tasks.platform import Platform
    from tasks.prefect_api import PrefectApi
    from tasks.store import open_store

    platform = Platform(open_store(local.spec.store, prove=True), local.spec.app, "serve")
    prefect = PrefectApi(local.prefect_url)
    clusters = Clusters.of(local.spec)
    reconciler = Reconciler(platform, prefect, local.spec, local.base, clusters=clusters)
    backup = local.spec.backup
    mirror = Mirror(platform.store, open_backup(backup), backup.every) if backup is not None else None
    context = ServeContext(
        spec=local.spec,
        spec_path=local.spec_path,
        platform=platform,
        prefect=prefect,
        home=local.base,
        token=token,
        run_url=reconciler.run_url,
        health=reconciler.health,
        problem=clusters.problem,
        backup_problem=lambda: mirror.error if mirror is not None else None,
        trouble=lambda cloud, request, n: clusters.trouble(cloud, (request, n)),
    )
    reconciler.start()
    if mirror is not None:
        mirror.start()
    try:
        uvicorn.run(
            create_app(context), host=where, port=at, log_level="warning", timeout_graceful_shutdown=5
        )
    finally:
        if mirror is not None:
            mirror.stop()
        reconciler.stop()
