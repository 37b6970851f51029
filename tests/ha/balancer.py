"""A load balancer as production has one: each HTTP request goes to the next backend that lives.

It does what a proxy may do safely: a request that no backend took is given to the next one, whatever its
method; an answer that was lost on the way is asked for again only where asking twice changes nothing (GET).
Anything else is a 502, and up to the client.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
HEAD_LIMIT = 256 * 1024

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Balancer:
    """Listens on 127.0.0.1:`port` in a thread of its own until `stop`. `backends`: ports of 127.0.0.1."""

    def __init__(self, port: int, backends: list[int]) -> None:
        self.port = port
        self.backends = backends
        #: Requests that each backend took; only its own thread writes it.
        self.taken = dict.fromkeys(backends, 0)
        self._turn = 0
        self._tasks = set[asyncio.Task[None]]()  # asyncio itself holds its tasks weakly
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._accept, "127.0.0.1", port, limit=HEAD_LIMIT)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request, upgrade = await _request(reader)
            if not await self._forward(request, upgrade, (reader, writer)):
                writer.write(BAD_GATEWAY)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client is gone
        finally:
            writer.close()

    async def _forward(self, request: bytes, upgrade: bool, client: Streams) -> bool:
        """Whether a backend's answer went to the client."""
        again = request.startswith((b"GET ", b"HEAD "))
        for _ in self.backends:
            self._turn += 1
            port = self.backends[self._turn % len(self.backends)]
            try:
                back, front = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            self.taken[port] += 1
            try:
                if await _answered(request, upgrade, (back, front), client):
                    return True
            finally:
                front.close()
            if not again:
                return False
        return False


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """The client's whole request, asking for one answer a connection; and whether it becomes a websocket."""
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    first, *lines = head.split(b"\r\n")
    fields = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in lines}
    if b"upgrade" in fields:
        return head + b"\r\n\r\n", True
    body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", body]), False


async def _answered(request: bytes, upgrade: bool, backend: Streams, client: Streams) -> bool:
    """Whether anything of the backend's answer came; then all of it that there is went to the client."""
    try:
        backend[1].write(request)
        await backend[1].drain()
        first = await backend[0].read(65536)
    except OSError:
        return False
    if not first:
        return False
    client[1].write(first)
    ways = [asyncio.create_task(_pump(backend[0], client[1]))]
    if upgrade:
        ways.append(asyncio.create_task(_pump(client[0], backend[1])))
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    return True


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Everything until the end, which is passed on."""
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    with suppress(OSError):
        target.write_eof()
