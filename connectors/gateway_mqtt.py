"""The way to IoT Hub over MQTT, by Microsoft's azure-iot-device.

That client's own reconnecting is off: with it, a message that was under way when the connection broke is
waited for without an end (github.com/Azure/azure-iot-sdk-python issues 775, 1151). Here every call is waited
for ``timeout_seconds`` at most; after any failure, and before its token expires, the client is left and another
made, which costs some milliseconds. While a client that was given up still hangs no other is made: all of them
share one thread.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from voltmill.connectors import pack
from voltmill.connectors.extras import need
from voltmill.connectors.gateway_hub import HubError, Outgoing
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.probe_network import explain

T = TypeVar("T")

#: How long before its token expires a client is replaced, s; it would renew it by itself 120 s before, and
#: break the connection while a message is under way.
RENEW_SECONDS: Final = 180.0

log = logging.getLogger("voltmill.gateway")


class MqttHub:
    """Sends by azure-iot-device; see `voltmill.connectors.gateway_hub.Hub`.

    Raises:
        ValueError: ``ca_file`` cannot be used.
        MissingExtra: azure-iot-device is not installed.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._sdk = need("azure.iot.device", f'[gateway] transport = "{settings.transport}"')
        self._sdk_errors = need("azure.iot.device.exceptions", "the gateway")
        _hush("azure.iot.device", "paho")
        self._authorities = _read(settings.ca_file) if settings.ca_file else None
        self._closed = threading.Event()
        self._client: Any = None
        self._renew_at = 0.0
        self._hanging: list[threading.Thread] = []

    def check(self, seconds: float) -> None:
        """Connect and log in; the connection is kept."""
        self._leave()
        self._client = self._within(seconds, self._connected, "connecting")
        self._renew_at = time.monotonic() + self._settings.sas_ttl_seconds - RENEW_SECONDS

    def send(self, message: Outgoing) -> None:
        """Publish one message with QoS 1 and wait for the acknowledgement."""
        if self._client is None or time.monotonic() >= self._renew_at:
            self.check(self._settings.timeout_seconds)
        client, outgoing = self._client, self._sdk.Message(message.body, message_id=message.message_id)
        outgoing.content_type, outgoing.content_encoding = pack.CONTENT_TYPE, pack.CONTENT_ENCODING
        outgoing.custom_properties.update(message.properties)
        try:
            self._within(self._settings.timeout_seconds, lambda: client.send_message(outgoing), "sending")
        except HubError as error:
            error.sending = True
            self._leave()
            raise

    def close(self) -> None:
        """Leave the hub; a call that is under way fails at once."""
        self._closed.set()
        self._leave()

    @property
    def arguments(self) -> dict[str, Any]:
        """What the client is made with."""
        return {
            "server_verification_cert": self._authorities,
            "websockets": self._settings.transport == "mqtt_ws",
            "sastoken_ttl": int(self._settings.sas_ttl_seconds),
            "keep_alive": self._settings.keepalive_seconds,
            "auto_connect": False,
            "connection_retry": False,
            "ensure_desired_properties": False,
        }

    def _connected(self) -> Any:
        identity = self._settings.identity
        text = f"HostName={identity.host};DeviceId={identity.device_id};SharedAccessKey={identity.key}"
        text += f";GatewayHostName={identity.gateway_host}" if identity.gateway_host else ""
        client = self._sdk.IoTHubDeviceClient.create_from_connection_string(text, **self.arguments)
        try:
            client.connect()
        except BaseException:
            _shut(client)
            raise
        return client

    def _leave(self) -> None:
        """Shut the client down in a thread of its own: it may hang, and then fails what it has under way."""
        client, self._client = self._client, None
        if client is not None:
            leaving = threading.Thread(target=_shut, args=(client,), name="gateway-leave", daemon=True)
            leaving.start()
            self._hanging.append(leaving)
            leaving.join(1.0)

    def _within(self, seconds: float, call: Callable[[], T], doing: str) -> T:
        """What the call returns, in a thread of its own, if it ends in time; what it connects later is shut down."""
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        if self._hanging:
            raise HubError("its client, which was given up, still hangs", "timeout")
        attempt = _Attempt(call)
        attempt.start()
        until = time.monotonic() + seconds
        while not attempt.done.wait(0.2) and time.monotonic() < until and not self._closed.is_set():
            pass
        if not attempt.given_up():
            if attempt.error is not None:
                raise self._failure(attempt.error, seconds) from attempt.error
            return attempt.result  # type: ignore[no-any-return]
        self._hanging.append(attempt)
        if self._closed.is_set():
            raise HubError("the gateway is leaving", "timeout")
        raise HubError(
            f"{doing} took longer than {seconds:g} s", "timeout", mend="a slow network needs more timeout_seconds"
        )

    def _failure(self, error: BaseException, seconds: float) -> HubError:
        errors = self._sdk_errors
        if isinstance(error, errors.CredentialError):
            mend = (
                "mend HostName, DeviceId and SharedAccessKey, enable the device at the hub, or set this machine's clock"
            )
            return HubError("it refuses the login", "refused", mend=mend)
        if isinstance(error, errors.NoConnectionError | errors.ConnectionDroppedError | errors.OperationCancelled):
            return HubError("it closed the connection", "unreachable")
        if isinstance(error, errors.OperationTimeout):
            return HubError("it does not answer the login", "timeout")
        problem, mend = explain(error, seconds=seconds)
        if "certificate" in problem:
            return HubError(problem, "refused", mend=mend)
        if isinstance(error, ValueError):  # the client's own check of the size
            return HubError("the message is too large", "rejected")
        return HubError(problem, "unreachable", mend=mend)


class _Attempt(threading.Thread):
    """One call of the client, which may never return."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(name="gateway-call", daemon=True)
        self._call, self._lock = call, threading.Lock()
        self._ended = self._alone = False
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
        with self._lock:
            self._ended = True
        self.done.set()
        if self._alone and self.result is not None:  # a client that nobody waits for any more
            _shut(self.result)

    def given_up(self) -> bool:
        """Whether it has not ended, and from now on nobody waits for it."""
        with self._lock:
            self._alone = not self._ended
            return self._alone


def _shut(client: Any) -> None:
    try:
        client.shutdown()
    except Exception as error:  # it is left in any case
        log.debug("hub client left", extra={"reason": f"{type(error).__name__}: {error}"})


def _read(ca_file: str) -> str:
    try:
        ssl.create_default_context(cafile=ca_file)  # else a wrong file would look like a hub without TLS
        return Path(ca_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"gateway.ca_file {ca_file!r} cannot be used: {error}: name a PEM file") from error


def _hush(*names: str) -> None:
    """Keep a library's log lines off standard error: what it reports is told in ours, once."""
    for name in names:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
