"""A stand-in for IoT Hub: devices send over HTTP, the unmodified Event Hubs client reads over AMQP 1.0.

In the process of a test: ``HubServer``. In one of its own, so that it takes no time from a flow: ``HubProcess``,
which starts ``python hub_server.py --partitions 4`` and speaks to it over HTTP (``hub_http``). Both are used
alike. All is in memory and on the loopback.

What it does as IoT Hub does: SAS tokens and Entra tokens are checked, consumer groups must exist, positions,
retention, annotations of devices, credit, messages of 256 KB in several frames, epochs (``owner_level``).
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import urllib3
from hub_amqp import Access, Connection, Readers
from hub_http import HubHttp
from hub_partitions import Hub

NAME = "iothub-ehub-bms-1234567-a1b2c3d4e5"
KEY = "c2VydmljZS1rZXktb2YtdGhlLXN0YW5kLWlu"
POLICY = "service"


def connection_string(port: int, *, key: str = KEY, name: str = NAME) -> str:
    """What a flow is configured with; the last part makes the client do without TLS."""
    login = f"SharedAccessKeyName={POLICY};SharedAccessKey={key}"
    return f"Endpoint=sb://127.0.0.1:{port}/;{login};EntityPath={name};UseDevelopmentEmulator=true"


class HubServer:
    """The stand-in, in a thread of this process.

    Args:
        partitions: how many the hub has.
        groups: consumer groups.
        tokens: Entra tokens, and whether they may read.
        certificate: certificate and key file for HTTPS; None: plain HTTP.
        device_keys: keys of devices, as `hub_http.HubHttp` takes them.
        port: of AMQP; 0: a free one.
        name: the Event Hubs-compatible name.
    """

    def __init__(
        self,
        partitions: int = 4,
        *,
        groups: tuple[str, ...] = ("$Default",),
        tokens: Mapping[str, bool] | None = None,
        certificate: tuple[str, str] | None = None,
        device_keys: Mapping[str, str] | None = None,
        port: int = 0,
        name: str = NAME,
    ) -> None:
        self.hub = Hub(name, partitions)
        self._readers = Readers(self.hub, Access({POLICY: KEY}, tokens or {}, groups))
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._told = False
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.come()
        self.hub.on_append = self._tell
        self._http = HubHttp(self, certificate, device_keys or {})
        self.http_port = self._http.port

    @property
    def connection_string(self) -> str:
        return connection_string(self.port, name=self.hub.name)

    def append(self, body: bytes, **details: Any) -> tuple[int, int]:
        """Take an event; partition and sequence number. Details as `hub_partitions.Hub.append` takes them."""
        return self.hub.append(body, **details)

    def append_all(self, events: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """Take events that are given as the arguments of ``append``."""
        return [self.append(**event) for event in events]

    def drop(self) -> None:
        """Cut all connections."""
        self._call(self._drop())

    def leave(self) -> None:
        """Cut all connections and take no more."""
        self._call(self._leave())

    def come(self) -> None:
        """Take connections, on the port as before."""
        self._call(self._come())

    def expire(self, partition: int, before: int) -> None:
        """Let the events of a partition below a sequence number go."""
        with self.hub.lock:
            self.hub.partitions[partition].expire(before)

    def seek(self, partition: int, sequence: int) -> None:
        """Send the readers of a partition what comes from a sequence number on, whatever they have had."""
        self._call(self._seek(partition, sequence))

    def silence(self, silent: bool) -> None:
        """Give new connections no sign of life, as a network that has forgotten them, or do."""
        self._readers.silent = silent

    def allow(self, key: str) -> None:
        """Take another SAS key, and the former no more."""
        self._readers.access.keys = {POLICY: key}

    def stats(self) -> dict[str, Any]:
        with self.hub.lock:
            ends = [[held.first, held.end] for held in self.hub.partitions]
        counted = dict(self._readers.counted)
        return {"partitions": ends, "positions": list(self._readers.positions), **counted}

    def stop(self) -> None:
        self._http.close()
        self.leave()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _tell(self) -> None:
        """Wake the readers, once for whatever comes until they are awake."""
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._pump)

    def _pump(self) -> None:
        self._told = False
        self._readers.pump()

    async def _come(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self._readers, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(connection)
        self._tasks.add(task)
        self._readers.counted["connections"] += 1
        await connection.run()
        self._connections.discard(connection)
        self._tasks.discard(task)
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _drop(self) -> None:
        for connection in list(self._connections):
            connection.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _seek(self, partition: int, sequence: int) -> None:
        for link in self._readers.links:
            if link.partition == partition:
                link.position = sequence
        self._readers.pump()

    async def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._drop()


class HubProcess:
    """The stand-in in a process of its own, used as ``HubServer`` is; ``ca_file`` is what signed ``certificate``."""

    def __init__(
        self, partitions: int = 4, *, certificate: tuple[str, str] | None = None, ca_file: str | None = None
    ) -> None:
        command = [sys.executable, str(Path(__file__)), "--partitions", str(partitions)]
        command += ["--certificate", *certificate] if certificate else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        ports = json.loads(self.process.stdout.readline())
        self.port, self.http_port = int(ports["amqp"]), int(ports["http"])
        self.url = f"{'https' if certificate else 'http'}://localhost:{self.http_port}"
        self._http = urllib3.HTTPConnectionPool("127.0.0.1", self.http_port)
        if certificate:
            self._http = urllib3.HTTPSConnectionPool("localhost", self.http_port, ca_certs=ca_file)

    @property
    def connection_string(self) -> str:
        return connection_string(self.port)

    def append(self, body: bytes, **details: Any) -> tuple[int, int]:
        return self.append_all([{"body": body, **details}])[0]

    def append_all(self, events: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
        given = [{**event, "body": base64.b64encode(event["body"]).decode()} for event in events]
        return [(partition, sequence) for partition, sequence in self._post("/append", given)]

    def drop(self) -> None:
        self._post("/drop", {})

    def leave(self) -> None:
        self._post("/leave", {})

    def come(self) -> None:
        self._post("/come", {})

    def expire(self, partition: int, before: int) -> None:
        self._post("/expire", {"partition": partition, "before": before})

    def stats(self) -> dict[str, Any]:
        counted: dict[str, Any] = json.loads(self._http.request("GET", "/stats").data)
        return counted

    def stop(self) -> None:
        self._http.close()
        self.process.terminate()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _post(self, path: str, value: Any) -> Any:
        answer = self._http.request("POST", path, body=json.dumps(value), headers={"Content-Type": "application/json"})
        assert answer.status == 200, answer.data
        return json.loads(answer.data)


def main() -> None:
    """Serve until the process is ended, or the one that started it has gone; the ports come as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--certificate", nargs=2)
    asked = parser.parse_args()
    certificate = tuple(asked.certificate) if asked.certificate else None
    server = HubServer(asked.partitions, port=asked.port, certificate=certificate)
    print(json.dumps({"amqp": server.port, "http": server.http_port}), flush=True)
    parent, over = os.getppid(), threading.Event()
    while os.getppid() == parent:
        over.wait(0.5)


if __name__ == "__main__":
    main()
