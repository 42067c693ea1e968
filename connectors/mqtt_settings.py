"""What can be set about MQTT: the ``[mqtt]`` table."""

import re
import ssl
from typing import Literal

import msgspec

_MOST_IN_FLIGHT = 65_535  # packet ids have 16 bits


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[mqtt.tls]`` table; present, even if empty, it turns TLS on."""

    ca_file: str = ""
    """PEM file of the authorities that are trusted; empty: those of the system."""
    cert_file: str = ""
    """PEM file of the client's certificate chain; empty: none is sent."""
    key_file: str = ""
    """PEM file of the client's private key; empty: it is in ``cert_file``."""
    check_server_name: bool = True
    """Whether the server's certificate must be made out to ``host``; off only where it cannot be."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if self.key_file and not self.cert_file:
            raise ValueError("mqtt.tls.key_file is set without mqtt.tls.cert_file: name the certificate too")

    def context(self) -> ssl.SSLContext:
        """The context of the connections.

        Raises:
            ValueError: a file is missing or not PEM; the message names it.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except OSError as error:
            raise ValueError(f"mqtt.tls.ca_file {self.ca_file!r} cannot be used: {error}") from error
        context.check_hostname = self.check_server_name
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file or None)
            except OSError as error:
                files = f"cert_file {self.cert_file!r}, key_file {self.key_file!r}"
                raise ValueError(f"mqtt.tls: {files} cannot be used: {error}") from error
        return context


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[mqtt]`` table: where the broker is, who we are, and how much may be under way.

    Example:
        >>> MqttSettings(username="flow", password="secret").password
        'secret'
        >>> "secret" in repr(MqttSettings(username="flow", password="secret"))
        False
    """

    host: str = "127.0.0.1"
    """Name or address of the broker."""
    port: int = 1883
    """Its TCP port; 8883 is usual with TLS."""
    topics: tuple[str, ...] = ("voltmill/#",)
    """Topic filters. Each is one partition with a connection of its own, and keeps its messages in order;
    filters should not overlap, or a message comes once for each."""
    client_id: str = "voltmill"
    """Name of the persistent session at the broker; a digest of the topic filter is appended. Two flows
    with the same name on one broker would push each other out."""
    username: str = ""
    """Empty: the broker admits anyone."""
    password: str = ""
    """Write ``"${NAME}"`` to take it from the environment."""
    protocol: Literal["5", "3.1.1"] = "5"
    """MQTT version. Under 3.1.1 only the broker limits what is in flight (Mosquitto: set
    ``max_inflight_messages 65535``; its default of 20 lets 20 messages through per epoch)."""
    tls: TlsSettings | None = None
    """TLS, if the table is there."""
    keepalive_seconds: int = 30
    """The broker closes a connection over which it hears nothing for one and a half times this time, s."""
    timeout_seconds: float = 3.0
    """A broker that does not let us in, or says nothing though asked, for this time is taken for away, s."""
    receive_maximum: int = _MOST_IN_FLIGHT
    """Messages of one partition that are not yet acknowledged, at most 65,535 (MQTT 5). They are
    acknowledged when their epoch is durable, so a partition passes at most this many per epoch."""
    session_expiry_seconds: int = 7 * 24 * 3600
    """How long the broker keeps the session and its messages while no flow is connected, s (MQTT 5)."""
    max_batch_rows: int = 4096
    """Messages in one batch."""
    max_batch_bytes: int = 8 << 20
    """Payload bytes in one batch; a larger message makes a larger batch."""
    linger_ms: int = 50
    """How long a message waits for a batch to fill, ms."""
    max_queue_messages: int = 65_536
    """Messages received and not yet taken by the flow; beyond it the socket is not read."""
    max_queue_bytes: int = 128 << 20
    """The same in payload bytes."""
    reconnect_min_seconds: float = 0.5
    """Wait before the first reconnect, s; doubled at each failure, with jitter."""
    reconnect_max_seconds: float = 1.0
    """The longest such wait, s: what the flow may stand still after the broker's return."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not self.host:
            raise ValueError("mqtt.host is empty: name the broker")
        if not 0 < self.port < 65_536:
            raise ValueError(f"mqtt.port {self.port} is no TCP port: 1 to 65535")
        if not self.topics or len(set(self.topics)) < len(self.topics):
            raise ValueError("mqtt.topics needs at least one topic filter, and each only once")
        for topic in self.topics:
            if not _is_filter(topic):
                raise ValueError(f"mqtt.topics: {topic!r} is no topic filter ('+' and '#' stand alone, '#' last)")
            if topic.startswith("$share/"):
                raise ValueError(f"mqtt.topics: {topic!r}: shared subscriptions do not keep a device in order")
        if not re.fullmatch(r"[\w.-]{1,100}", self.client_id):
            raise ValueError(f"mqtt.client_id {self.client_id!r}: 1 to 100 letters, digits, '_', '-' or '.'")
        if self.password and not self.username:
            raise ValueError("mqtt.password is set without mqtt.username: set both")
        if not 1 <= self.receive_maximum <= _MOST_IN_FLIGHT:
            raise ValueError(f"mqtt.receive_maximum is 1 to {_MOST_IN_FLIGHT}")
        if not 0 < self.keepalive_seconds < 65_536 or not 0 < self.session_expiry_seconds < 1 << 32:
            raise ValueError("mqtt.keepalive_seconds is 1 to 65535, mqtt.session_expiry_seconds 1 to 4294967295")
        for name in ("max_batch_rows", "max_batch_bytes", "linger_ms", "max_queue_messages", "max_queue_bytes"):
            if not 0 < getattr(self, name) < 1 << 30:
                raise ValueError(f"mqtt.{name} is 1 to {(1 << 30) - 1}")
        if not 0.1 <= self.timeout_seconds <= 3600:
            raise ValueError("mqtt.timeout_seconds is 0.1 to 3600")
        if not 0 < self.reconnect_min_seconds <= self.reconnect_max_seconds:
            raise ValueError("mqtt.reconnect_min_seconds is above 0 and at most mqtt.reconnect_max_seconds")

    def __repr__(self) -> str:
        """Without the password: settings end up in logs."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "password"}
        return f"MqttSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _is_filter(topic: str) -> bool:
    """Whether it is a topic filter (MQTT 5 section 4.7)."""
    levels = topic.split("/")
    wild = [level for level in levels if ("#" in level or "+" in level) and level not in ("#", "+")]
    return bool(topic) and "\0" not in topic and not wild and "#" not in levels[:-1]
