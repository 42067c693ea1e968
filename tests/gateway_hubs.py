"""Hubs that a gateway sends to: a real broker over TLS on the port that its client knows, a real HTTPS server."""

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import paho.mqtt.client as paho
from scripted_http import Handler, React, ScriptedServer, hang, hang_up
from servers import Certificates, Mosquitto, await_port, has_mosquitto, missing

from voltmill.connectors.gateway_hub import HubError, Outgoing
from voltmill.connectors.pack import unpack
from voltmill.flows.broker import free_port

__all__ = ["Handler", "HttpsHubServer", "MqttHubServer", "hang", "hang_up"]

DEVICE, KEY = "gw-1", base64.b64encode(b"the key of gateway 1: a secret").decode()
#: azure-iot-device connects to no other; for a WebSocket to 443 (``websocket_bridge``).
MQTT_PORT = 8883


def connection_string(server: str = "localhost", *, device: str = DEVICE, key: str = KEY) -> str:
    return f"HostName={server};DeviceId={device};SharedAccessKey={key}"


class _PortLock:
    """Held while a server of this process has, or is about to have again, the one port that the client knows.

    Tests that run side by side, or in another clone, wait for each other.
    """

    def __init__(self) -> None:
        self._holders, self._file = 0, Path(tempfile.gettempdir()) / f"voltmill-tests-{MQTT_PORT}.lock"

    def take(self, seconds: float = 240.0) -> None:
        if not self._holders:
            self._open = self._file.open("a")
            deadline = time.monotonic() + seconds
            while not self._free():
                assert time.monotonic() < deadline, f"something else has port {MQTT_PORT}, which the client has fixed"
                time.sleep(0.1)
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._open.close()

    def _free(self) -> bool:
        """Whether the lock is ours, and nobody who knows no lock listens."""
        with contextlib.suppress(OSError), socket.socket() as probe:
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", MQTT_PORT))
            return True
        return False


_PORT = _PortLock()


class MqttHubServer(Mosquitto):
    """Mosquitto as the hub: TLS with our own authority on 8883; what arrives is read over another port.

    Args:
        folder: for configuration, sessions and log.
        tls: the authority and the server's certificate.
        admits: whether any login is admitted, or none.
    """

    def __init__(self, folder: Path, tls: Certificates, *, admits: bool = True) -> None:
        if not has_mosquitto():
            missing("Mosquitto")
        _PORT.take()
        self.host, self.port, self.folder, self.inner = "localhost", MQTT_PORT, folder, free_port()
        lines = ["per_listener_settings true", f"listener {self.port} 127.0.0.1", f"cafile {tls.ca_file}"]
        lines += [f"certfile {tls.server_cert}", f"keyfile {tls.server_key}", f"allow_anonymous {str(admits).lower()}"]
        lines += [f"listener {self.inner} 127.0.0.1", "allow_anonymous true"]
        lines += ["max_inflight_messages 1000", "max_queued_messages 0"]
        lines += ["persistence true", f"persistence_location {folder}/"]
        lines += ["user root"] if os.geteuid() == 0 else []
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process = None
        self.packs: list[tuple[str, bytes]] = []
        self.start()
        await_port(self.inner, self.process)
        self._reader = paho.Client("reader", clean_session=False)
        self._reader.on_connect = lambda client, *_: client.subscribe("devices/#", 1)
        self._reader.on_message = lambda _, __, message: self.packs.append((message.topic, message.payload))
        self._reader.reconnect_delay_set(0.1, 0.2)
        self._reader.connect("127.0.0.1", self.inner)
        self._reader.loop_start()

    @property
    def process(self) -> Any:
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._process = None

    def end(self) -> None:
        self._reader.disconnect()
        self._reader.loop_stop()
        self.stop()
        _PORT.release()

    def properties(self) -> list[dict[str, str]]:
        """Of each pack, system properties as `$.name`."""
        found = [topic.partition(f"devices/{DEVICE}/messages/events/")[2] for topic, _ in list(self.packs)]
        return [{name: values[0] for name, values in parse_qs(text).items()} for text in found]

    def messages(self) -> list[tuple[str, bytes]]:
        return [message for _, body in list(self.packs) for message in unpack(body)]


class HttpsHubServer(ScriptedServer):
    """The device side of IoT Hub's REST interface: checks tokens and size; each POST meets the next of ``script``."""

    def __init__(self, tls: Certificates, port: int = 0) -> None:
        self.packs: list[tuple[dict[str, str], bytes]] = []
        self.tokens: list[str] = []
        self.keys = {DEVICE: KEY}
        super().__init__(take, tls, port)
        self.name = self.address

    def messages(self) -> list[tuple[str, bytes]]:
        return [message for _, body in list(self.packs) for message in unpack(body)]


def take(handler: Handler) -> None:
    """What the hub does: who are you, is it small enough, then it is kept."""
    hub, parts = handler.server, urlsplit(handler.path)
    device = unquote(parts.path.split("/")[2])
    token = handler.headers.get("Authorization", "")
    if parse_qs(parts.query).get("api-version") != ["2020-03-13"]:
        return handler.send(400, error("ErrorCode:InvalidProtocolVersion"))
    if device not in hub.keys:
        return handler.send(404, error("ErrorCode:DeviceNotFound;404001"))
    if not admits(token, f"localhost/devices/{device}", hub.keys[device]):
        return handler.send(401, error("ErrorCode:IotHubUnauthorizedAccess;Unauthorized"))
    if handler.command == "GET":
        return handler.send(204)
    if len(handler.body) > 256 << 10:
        return handler.send(413, error("ErrorCode:MessageTooLarge"))
    with hub.changed:
        hub.tokens.append(token)
        hub.packs.append(({name.lower(): value for name, value in handler.headers.items()}, handler.body))
    return handler.send(204)


def admits(token: str, resource: str, key: str) -> bool:
    """Whether a token is signed with the key, for this device, and has not expired."""
    kind, _, rest = token.partition(" ")
    fields = dict(part.split("=", 1) for part in rest.split("&")) if rest else {}
    if kind != "SharedAccessSignature" or set(fields) != {"sr", "sig", "se"}:
        return False
    signed = hmac.digest(base64.b64decode(key), f"{fields['sr']}\n{fields['se']}".encode(), hashlib.sha256)
    good = base64.b64encode(signed).decode() == unquote(fields["sig"])
    return good and unquote(fields["sr"]) == resource and float(fields["se"]) > time.time()


def error(text: str) -> bytes:
    return json.dumps({"Message": text, "ExceptionMessage": "Tracking ID:abc"}).encode()


def answers(status: int, text: str = "", **headers: str) -> React:
    return lambda handler: handler.send(status, error(text), **headers)


def take_and_hang_up(handler: Handler) -> None:
    """The hub has the message, and the sender never learns it."""
    with handler.server.changed:
        handler.server.packs.append(({name.lower(): value for name, value in handler.headers.items()}, handler.body))
    handler.close_connection = True


Does = Callable[[Outgoing], None]


class ScriptedHub:
    """Does with each message what the script says; takes it when that is over."""

    def __init__(self) -> None:
        self.script: list[Does | HubError] = []
        self.usual: Does | HubError | None = None
        self.taken: list[Outgoing] = []
        self.tried: list[Outgoing] = []
        self.closed = False

    def check(self, seconds: float) -> None: ...

    def send(self, message: Outgoing) -> None:
        self.tried.append(message)
        react = self.script.pop(0) if self.script else self.usual
        if isinstance(react, Exception):
            raise react
        if react is not None:
            react(message)
        self.taken.append(message)

    def close(self) -> None:
        self.closed = True

    @property
    def topics(self) -> list[str]:
        return [topic for message in self.taken for topic, _ in unpack(message.body)]
