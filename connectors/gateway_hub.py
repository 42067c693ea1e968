"""What the gateway sends to IoT Hub, and what may come of it; the transports are in files of their own."""

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from voltmill.connectors import pack
from voltmill.connectors.gateway_settings import GatewaySettings

#: Kept free in a message for its properties. The hub counts their names and values, Microsoft's C client
#: 384 bytes for each message and 16 for each property as well.
PROPERTY_BYTES: Final = 1024

Kind = Literal["unreachable", "timeout", "throttled", "server", "refused", "rejected", "internal"]


class HubError(Exception):
    """The hub has not confirmed a message; one line, without a secret.

    Attributes:
        kind: ``unreachable``: no connection, or it broke. ``timeout``: no answer in time. ``throttled``: too much
            for its units. ``server``: a fault of its own. ``refused``: it does not let us in; the key, the device
            or the certificate is wrong. ``rejected``: it will never take this message.
            ``internal``: a fault on our side, of the disk for one.
        mend: what to do about it; empty: wait.
        retry_after: how long it asks to be left alone, s.
        sending: whether it failed with a message under way, which may have arrived.
    """

    def __init__(
        self, problem: str, kind: Kind, *, mend: str = "", retry_after: float = 0.0, sending: bool = False
    ) -> None:
        super().__init__(f"{problem}; {mend}" if mend else problem)
        self.problem, self.kind, self.mend = problem, kind, mend
        self.retry_after, self.sending = retry_after, sending


@dataclass(frozen=True)
class Outgoing:
    """One message to the hub.

    Attributes:
        body: a pack.
        message_id: the same when the same pack is sent again.
        late: whether it was kept back.

    Example:
        >>> Outgoing(b"[]", "7f3a-1-9", late=True).properties
        {'schema': 'voltmill-pack-1', 'late': 'true'}
    """

    body: bytes = field(repr=False)
    message_id: str
    late: bool

    @property
    def properties(self) -> dict[str, str]:
        """Its application properties."""
        return {pack.PROPERTY: pack.SCHEMA} | ({pack.LATE: "true"} if self.late else {})


class Hub(Protocol):
    """A way to the hub; used by one thread, but for ``close``."""

    def check(self, seconds: float) -> None:
        """Log in within this time, or raise HubError; nothing is sent."""

    def send(self, message: Outgoing) -> None:
        """Return when the hub has confirmed it; it is connected to where that is needed.

        Raises:
            HubError: it has not; whether it has the message is open.
        """

    def close(self) -> None:
        """Leave; a call that is under way ends soon."""


def open_hub(settings: GatewaySettings) -> Hub:
    """The way that the settings name; connects to nothing yet.

    Raises:
        ValueError: ``ca_file`` cannot be used.
        MissingExtra: the client is not installed.
    """
    if settings.transport == "https":
        from voltmill.connectors.gateway_https import HttpsHub

        return HttpsHub(settings)
    from voltmill.connectors.gateway_mqtt import MqttHub

    return MqttHub(settings)
