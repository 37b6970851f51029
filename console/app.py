"""The FastAPI app of `lora-ops serve`."""

from __future__ import annotations

from fastapi import FastAPI

from console import clouds, deploys, errors, gates, metrics, releases, requests, rollouts, status
from console.auth import Guard
from console.context import ServeContext
from console.reader import Reader
from console.views import JsonAnswer
from lora_ops import __version__


def create_app(context: ServeContext) -> FastAPI:
    """The app over one platform. All handlers are sync and run in Starlette's thread pool."""
    app = FastAPI(
        title="lora-ops",
        version=__version__,
        default_response_class=JsonAnswer,
        docs_url=None,
        redoc_url=None,
    )
    app.state.reader = Reader(context)
    errors.install(app)
    for noun in (status, deploys, rollouts, requests, releases, clouds, gates, metrics):
        app.include_router(noun.router)
    app.add_middleware(Guard, token=context.token, host=context.spec.serve.host)
    return app
