"""A TCP proxy that can be cut, blackholed, slowed and made to drop connections, in a thread of its own."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from typing import Any, Final

from voltmill.flows.broker import free_port

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16


class Proxy:
    """Passes connections on to a port of the loopback; ``port`` is its own, and stays the same."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._delay = 0.0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        threading.Thread(target=self._loop.run_forever, name=f"proxy-{target}", daemon=True).start()
        self._do(self._listen())

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._do(self._cut())

    def blackhole(self) -> None:
        """Take connections and pass nothing on, as a firewall does that drops packets."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def delay(self, seconds: float) -> None:
        """Hold every chunk back for so long."""
        self._delay = seconds

    def drop(self, share: float, random_: random.Random) -> None:
        """Reset some of the connections."""
        self._loop.call_soon_threadsafe(self._abort, lambda: random_.random() < share)

    def restore(self) -> None:
        """Pass everything on again; what was held back by ``blackhole`` is passed on now."""
        self._delay = 0.0
        self._loop.call_soon_threadsafe(self._open.set)
        self._do(self._listen())

    def close(self) -> None:
        """End it."""
        self._do(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, _HOST, self.port, limit=_CHUNK)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._abort(lambda: True)

    def _abort(self, chosen: Any) -> None:
        for writer in [w for w in self._connections if chosen()]:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            back, onward = await asyncio.open_connection(_HOST, self._target, limit=_CHUNK)
            both = [asyncio.ensure_future(self._pump(reader, onward)), asyncio.ensure_future(self._pump(back, writer))]
            await asyncio.wait(both)
        except OSError:
            pass  # the server is not there: neither are we
        finally:
            self._connections.discard(writer)
            for end in (writer, onward):
                if end is not None:
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until either side ends; half-closed connections are kept, as TCP has them."""
        try:
            while data := await reader.read(_CHUNK):
                await self._open.wait()
                if self._delay:
                    await asyncio.sleep(self._delay)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()
