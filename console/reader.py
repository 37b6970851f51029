"""What one serve process has read, shared by all handlers."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from console.context import ServeContext
from console.events import Events
from console.request_index import RequestIndex
from console.request_views import RequestViews
from console.tally import Tallies
from lora_ops.state import AppState


class Reader:
    """The context with its caches; everything cached is immutable in the store."""

    def __init__(self, context: ServeContext) -> None:
        self.context = context
        self.platform = context.platform
        self.store = context.platform.store
        self.events = Events(context.platform)
        self.requests = RequestIndex(context.platform)
        self.tallies = Tallies(context.platform, self.events)
        self.request_views = RequestViews(context.platform, context.run_url, context.trouble)

    def state(self) -> AppState:
        """The newest state; `events` then know all of the journal up to it."""
        return self.events.refresh()


def _reader(request: Request) -> Reader:
    reader: Reader = request.app.state.reader
    return reader


ReaderDep = Annotated[Reader, Depends(_reader)]
