"""What can be set about reading IoT Hub: the ``[iothub]`` table."""

import re
from datetime import UTC, datetime
from typing import Final

import msgspec

_WHERE: Final = (
    "take the Event Hub-compatible endpoint instead: in the portal under Built-in endpoints, or"
    " `az iot hub connection-string show --default-eventhub --policy-name service`"
)
_NAME: Final = re.compile(r"[\w$.()-]{1,256}")


class IotHubSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[iothub]`` table: the hub's Event Hubs-compatible endpoint, which the live flow reads.

    Either ``connection_string``, or ``namespace`` and ``hub`` with the identity of the process (Entra ID).

    Example:
        >>> key = "Endpoint=sb://ns.example/;SharedAccessKeyName=service;SharedAccessKey=secret;EntityPath=bms"
        >>> settings = IotHubSettings(connection_string=key)
        >>> settings.place, "secret" in repr(settings)
        ('IoT Hub bms at ns.example', False)
    """

    connection_string: str = ""
    """Event Hub-compatible endpoint with its `EntityPath`, as the portal shows it under Built-in endpoints. Write it
    as `"${NAME}"`. The policy needs the right ServiceConnect only: `service` has it."""
    namespace: str = ""
    """Without a connection string: host of an Event Hubs namespace that the hub routes to, such as
    `fleet.servicebus.windows.net`. The process logs in with `DefaultAzureCredential`, and needs the role Azure Event
    Hubs Data Receiver. The built-in endpoint takes keys only."""
    hub: str = ""
    """With `namespace`: the name of the Event Hub."""
    consumer_group: str = "$Default"
    """Consumer group; one of its own for each flow that reads the hub. Two flows on one push each other out."""
    start: str = "earliest"
    """Where a new recovery store begins: `earliest` (all that the hub still holds), `latest` (what comes from now
    on), or an RFC 3339 time of arrival at the hub. A store that has a place goes on there."""
    prefetch: int = 1000
    """Events the hub sends ahead, in one partition. It sends more only when all of them have come, so a small number
    costs a round trip more often."""
    max_batch_rows: int = 4096
    """Messages in one batch. An event is never split: a pack of more messages makes a larger batch."""
    max_batch_bytes: int = 8 << 20
    """Payload bytes in one batch; a larger event makes a larger batch."""
    linger_ms: int = 50
    """How long a message waits for a batch to fill, ms."""
    max_queue_messages: int = 65_536
    """Messages received and not yet taken by the flow, in one partition; beyond it the socket is not read."""
    max_queue_bytes: int = 32 << 20
    """The same in payload bytes."""
    timeout_seconds: float = 10.0
    """A hub that does not let us in within this time is taken for away, s."""
    reconnect_min_seconds: float = 0.5
    """Wait before the first reconnect, s; doubled at each failure, with jitter."""
    reconnect_max_seconds: float = 10.0
    """The longest such wait, s: how late the return of the hub is noticed. IoT Hub limits how often one may connect."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if self.connection_string:
            self._check_connection_string()
        if bool(self.namespace) != bool(self.hub):
            raise ValueError("iothub.namespace and iothub.hub go together: set both, or a connection_string")
        if self.connection_string and self.namespace:
            raise ValueError("iothub.connection_string and iothub.namespace are both set: leave one out")
        if self.namespace and not re.fullmatch(r"[\w.-]+(:\d+)?", self.namespace):
            raise ValueError("iothub.namespace is a host name only, such as fleet.servicebus.windows.net")
        for name in ("consumer_group", "hub"):
            if getattr(self, name) and not _NAME.fullmatch(getattr(self, name)) or not self.consumer_group:
                raise ValueError(f"iothub.{name} {getattr(self, name)!r}: letters, digits, '$', '_', '-', '.'")
        if self.start not in ("earliest", "latest"):
            self._start_time()
        for name in ("max_batch_rows", "max_batch_bytes", "linger_ms", "max_queue_messages", "max_queue_bytes"):
            if not 0 < getattr(self, name) < 1 << 30:
                raise ValueError(f"iothub.{name} is 1 to {(1 << 30) - 1}")
        if not 1 <= self.prefetch <= 10_000:
            raise ValueError("iothub.prefetch is 1 to 10000")
        if not 1 <= self.timeout_seconds <= 600:
            raise ValueError("iothub.timeout_seconds is 1 to 600")
        if not 0 < self.reconnect_min_seconds <= self.reconnect_max_seconds:
            raise ValueError("iothub.reconnect_min_seconds is above 0 and at most iothub.reconnect_max_seconds")

    def __repr__(self) -> str:
        """Without the connection string: settings end up in logs."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "connection_string"}
        return f"IotHubSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def configured(self) -> bool:
        """Whether there is a hub to read."""
        return bool(self.connection_string or self.namespace)

    @property
    def address(self) -> str:
        """Host of the endpoint, with its port if that is not the usual one."""
        return self._part("endpoint").removeprefix("sb://").rstrip("/") if self.connection_string else self.namespace

    @property
    def name(self) -> str:
        """The Event Hub-compatible name."""
        return self._part("entitypath") if self.connection_string else self.hub

    @property
    def place(self) -> str:
        """The hub as messages name it: no secret in it."""
        return f"IoT Hub {self.name} at {self.address}" if self.configured else "IoT Hub"

    @property
    def secret(self) -> str:
        """What must be in no message; empty with Entra ID."""
        return self._part("sharedaccesskey") or self._part("sharedaccesssignature")

    def start_position(self) -> str | datetime:
        """``start`` as the client takes it."""
        return {"earliest": "-1", "latest": "@latest"}.get(self.start) or self._start_time()

    def _start_time(self) -> datetime:
        try:
            time = datetime.fromisoformat(self.start)
        except ValueError:
            raise ValueError(
                f'iothub.start {self.start!r}: "earliest", "latest", or a time such as "2026-05-01T00:00:00Z"'
            ) from None
        if time.tzinfo is None:
            raise ValueError(f"iothub.start {self.start!r} says no time zone: append Z for UTC")
        return time.astimezone(UTC)

    def _part(self, name: str) -> str:
        """A part of the connection string, by its name in small letters."""
        pairs = (part.partition("=") for part in self.connection_string.split(";"))
        return {key.strip().lower(): value.strip() for key, _, value in pairs}.get(name, "")

    def _check_connection_string(self) -> None:
        # What was found is not shown: it may hold the key.
        if self._part("hostname"):
            raise ValueError(
                f"iothub.connection_string begins with HostName=: that is the hub's own, for devices; {_WHERE}"
            )
        if not self._part("endpoint").startswith("sb://"):
            raise ValueError(f"iothub.connection_string has no Endpoint=sb://…: {_WHERE}")
        if not self._part("entitypath"):
            raise ValueError(f"iothub.connection_string has no EntityPath=…, so it is that of a namespace: {_WHERE}")
        if not self.secret or (self._part("sharedaccesskey") and not self._part("sharedaccesskeyname")):
            raise ValueError(
                f"iothub.connection_string has no SharedAccessKeyName and SharedAccessKey, or only one: {_WHERE}"
            )
