"""A broker of one's own, for the demo and the benchmarks: Mosquitto if it is installed, else amqtt.

It listens on 127.0.0.1 alone, admits anyone, and ends with this process. It is not for production. With
amqtt (0.12.1) a flow that is killed loses what it had not acknowledged: amqtt does not deliver it again
after a reconnect, Mosquitto does.
"""

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

Kind = Literal["mosquitto", "amqtt"]

_HOST: Final = "127.0.0.1"
_READY_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0

# max_inflight_messages: as many as there are packet ids; its default of 20 would pass 20 messages an
# epoch, and with 0 (no limit) Mosquitto 2.0.11 reuses ids that are in flight and loses track.
_MOSQUITTO: Final = """\
listener {port} {host}
allow_anonymous true
max_inflight_messages 65535
max_queued_messages 0
persistence false
"""


@dataclass
class Broker:
    """A running broker; a context manager that stops it."""

    host: str
    port: int
    kind: Kind
    protocol: Literal["5", "3.1.1"]
    """The newest MQTT version it speaks: what ``MqttSettings.protocol`` should be."""
    folder: Path
    """Its configuration and its log; deleted at ``stop``."""
    process: "subprocess.Popen[bytes]" = field(repr=False)

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "broker.log").read_text(errors="replace")

    def stop(self) -> None:
        """End it and delete its folder; may be called again."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop it."""
        self.stop()


def find_mosquitto() -> str | None:
    """Path of the Mosquitto broker; Debian puts it where only root's PATH leads."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/opt/homebrew/sbin")


def free_port() -> int:
    """A TCP port of the loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def start_broker(port: int = 0, prefer: Kind | None = None) -> Broker:
    """Start a broker and wait until it takes connections. Call it from the main thread.

    Args:
        port: TCP port; 0 chooses a free one.
        prefer: which broker; None takes Mosquitto if it is installed, else amqtt.

    Raises:
        OSError: the port is taken, or the broker did not start; the message has its last words.
    """
    kind: Kind = prefer or ("mosquitto" if find_mosquitto() else "amqtt")
    if port:
        _check_free(port)
        return _start(kind, port)
    for _ in range(4):
        try:
            return _start(kind, free_port())
        except OSError:  # someone took the port in between
            continue
    return _start(kind, free_port())


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise OSError(f"broker: port {port} of {_HOST} cannot be used: {error.strerror}; choose another") from error


def _start(kind: Kind, port: int) -> Broker:
    folder = Path(tempfile.mkdtemp(prefix="voltmill-broker-"))
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            [*_dying_with_parent(), *_command(kind, port, folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ^C goes to the flow, which drains first
        )
    broker = Broker(_HOST, port, kind, "5" if kind == "mosquitto" else "3.1.1", folder, process)
    try:
        _await_ready(broker)
    except BaseException:
        broker.stop()
        raise
    return broker


def _command(kind: Kind, port: int, folder: Path) -> list[str]:
    if kind == "amqtt":
        return [sys.executable, "-m", "voltmill.flows.broker", str(port)]
    path = find_mosquitto()
    if path is None:
        raise OSError("broker: mosquitto is not installed; install it, or use amqtt")
    lines = _MOSQUITTO.format(port=port, host=_HOST)
    if os.geteuid() == 0:
        lines += "user root\n"  # else it changes to a user that may not read the folder
    (folder / "mosquitto.conf").write_text(lines)
    return [path, "-c", str(folder / "mosquitto.conf")]


def _dying_with_parent() -> list[str]:
    """A prefix that makes the kernel end the child with us, where there is one (util-linux)."""
    path = shutil.which("setpriv")
    return [path, "--pdeathsig", "TERM", "--"] if path and sys.platform == "linux" else []


def _await_ready(broker: Broker) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if broker.process.poll() is not None:
            raise OSError(f"broker: {broker.kind} ended at its start: {broker.log.strip()[-500:]}")
        try:
            socket.create_connection((broker.host, broker.port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise OSError(f"broker: {broker.kind} does not listen after {_READY_SECONDS:.0f} s: {broker.log.strip()[-500:]}")


async def _serve_amqtt(port: int) -> None:
    from amqtt.broker import Broker as Plain

    class Amqtt(Plain):  # type: ignore[misc]
        """amqtt acknowledges a message before it passes it on, and drops the rest when its sender leaves.

        Seen with 0.12.1 on Python 3.12, whose faster ``wait_for`` lets the reading run ahead. So the
        farewell waits until what was acknowledged has been passed on.
        """

        async def _client_message_loop(self, client_session: Any, handler: Any) -> None:
            farewell = handler.wait_disconnect

            async def wait_disconnect() -> Any:
                result = await farewell()
                while not client_session.delivered_message_queue.empty():
                    await asyncio.sleep(0.001)
                return result

            handler.wait_disconnect = wait_disconnect
            await super()._client_message_loop(client_session, handler)

    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{_HOST}:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Amqtt(config)
    await broker.start()
    await asyncio.Event().wait()  # until SIGTERM, which needs no farewell: nothing is kept


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # it warns of each acknowledgement that comes late
    asyncio.run(_serve_amqtt(int(sys.argv[1])))
