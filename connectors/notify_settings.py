"""What can be set about where alerts go: the ``[[notify]]`` tables."""

import re
from typing import Final, Literal

import msgspec

from voltmill.connectors.notify_places import HubSettings, NotifyMqttSettings, WebhookSettings

Severity = Literal["warning", "alarm", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("warning", "alarm", "critical")


class NotifySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[[notify]]`` table: a place that alerts are sent to, and which of them.

    Exactly one of ``webhook``, ``notification_hubs`` and ``mqtt`` says where. The filters must all admit an alert.
    """

    name: str
    """What logs and metrics call it. It is part of the recovery format: under another name the place begins anew."""
    severity: Severity = "warning"
    """Least severity that is told: warning, alarm or critical."""
    codes: tuple[str, ...] = ()
    """Patterns on the code, such as `OVER_*`; none: every code."""
    devices: tuple[str, ...] = ()
    """Patterns on `device_id`, as in `[[fleet]]`; none: every device."""
    on: tuple[Literal["opened", "closed"], ...] = ("opened", "closed")
    """Whether it is told that an alert opened, or rose in severity, and that it closed."""
    source: str = "urn:voltmill"
    """Who speaks, a URI: `source` of the CloudEvents. Give each plant its own where they share a receiver."""
    timeout_seconds: float = 10.0
    """How long one attempt may take, s."""
    first_pause_seconds: float = 1.0
    """How long the place is left alone after a failure, s; doubled with each further one, with jitter."""
    longest_pause_seconds: float = 60.0
    """The longest such pause, s: how late its return is noticed at most. A longer `Retry-After` is heeded, up to a
    day."""
    attempts: int = 20
    """How often an alert is sent that the receiver answers with an error of its own (5xx but 502, 503, 504), before
    it is set aside: it would hold up those behind it. Where the receiver is away, there is no such limit."""
    give_up_seconds: float = 86_400.0
    """How old a notification gets before it is not sent any more, s."""
    most_waiting: int = 1000
    """Notifications of one shard that may wait while the place is away. See notify.md for which are dropped beyond."""
    webhook: WebhookSettings | None = None
    """CloudEvents over HTTP."""
    notification_hubs: HubSettings | None = None
    """Azure Notification Hubs."""
    mqtt: NotifyMqttSettings | None = None
    """CloudEvents over MQTT."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,50}", self.name):
            raise ValueError("name is 1 to 50 letters, digits, '_' or '-'")
        if sum(kind is not None for kind in (self.webhook, self.notification_hubs, self.mqtt)) != 1:
            raise ValueError("needs one table: [notify.webhook], [notify.notification_hubs] or [notify.mqtt]")
        if not self.on:
            raise ValueError("on is empty: name opened, closed or both")
        if not re.fullmatch(r"[^\s\x00-\x1f]{1,200}", self.source):
            raise ValueError("source is a URI, such as urn:voltmill:plant-1")
        if not 0 < self.timeout_seconds <= 600:
            raise ValueError("timeout_seconds is above 0 to 600")
        if not 0 < self.first_pause_seconds <= self.longest_pause_seconds <= 86_400:
            raise ValueError(
                "first_pause_seconds must be above 0, longest_pause_seconds at least as long, 86400 at most"
            )
        if not (1 <= self.attempts <= 1000 and 10 <= self.most_waiting <= 100_000):
            raise ValueError("attempts is 1 to 1000, most_waiting 10 to 100000")
        if not 0 < self.give_up_seconds <= 30 * 86_400:
            raise ValueError("give_up_seconds is above 0 to 2592000 (30 days)")

    @property
    def place(self) -> str:
        """The place as messages name it: no secret in it."""
        where = self.webhook or self.notification_hubs
        if where is not None:
            return f"{self.name} ({where.place})"
        broker = self.mqtt.broker if self.mqtt else None
        return f"{self.name} ({f'mqtt broker {broker.host}:{broker.port}' if broker else 'the broker of [mqtt]'})"
