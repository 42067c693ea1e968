"""One notification: that an alert opened, rose in severity, or closed; in words, and as the bodies that are sent."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa

from voltmill.kernels.schema import ALERT

TYPE: Final = "voltmill.alert."


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """A notification, as it waits in the outbox and in the snapshot.

    Attributes:
        alert_id: of the episode.
        device_id: the module.
        code: what is wrong.
        severity: as of this notification.
        opened_at: when the episode began, µs since 1970.
        closed_at: when it ended, or None.
        value: the worst value, or None.
        limit: the limit it crossed, or None.
        quality_bits: of the episode.
        since: when it came here, s since 1970.
    """

    alert_id: str
    device_id: str
    code: str
    severity: str
    opened_at: int
    closed_at: int | None
    value: float | None
    limit: float | None
    quality_bits: int
    since: float

    @property
    def state(self) -> Literal["opened", "closed"]:
        """What it tells: an alert that rises in severity opens again at that severity."""
        return "opened" if self.closed_at is None else "closed"

    @property
    def id(self) -> str:
        """The same whenever and however often it is sent, also after a replay: what receivers tell copies by."""
        return f"{self.alert_id}-closed" if self.closed_at is not None else f"{self.alert_id}-opened-{self.severity}"

    @property
    def text(self) -> str:
        """In words.

        Example:
            >>> facts = ("module-7", "OVER_TEMP_ALARM", "alarm", 1_795_341_723_000_000)
            >>> Notice("5f0c", *facts, None, 61.2, 60.0, 0, 0.0).text
            'OVER_TEMP_ALARM on module-7: 61.2 (limit 60) since 2026-11-22 10:02:03Z'
            >>> Notice("5f0c", *facts, 1_795_342_325_000_000, 63.9, 60.0, 0, 0.0).text
            'OVER_TEMP_ALARM on module-7 is over: 63.9 at worst (limit 60), 2026-11-22 10:02:03Z to 10:12:05Z'
        """
        over = " is over" if self.closed_at is not None else ""
        worst = " at worst" if over else ""
        readings = [f"{self.value:.6g}{worst}"] if self.value is not None else []
        readings += [f"(limit {self.limit:.6g})"] if self.limit is not None else []
        began = f"{_time(self.opened_at):%Y-%m-%d %H:%M:%SZ}"
        if self.closed_at is None:
            readings.append(f"since {began}")
            when = ""
        else:
            ended = _time(self.closed_at)
            same_day = ended.date() == _time(self.opened_at).date()
            when = f"{began} to {ended:{'%H:%M:%SZ' if same_day else '%Y-%m-%d %H:%M:%SZ'}}"
        said = ", ".join(filter(None, (" ".join(readings), when)))
        return f"{self.code} on {self.device_id}{over}: {said}"

    def cloud_event(self, source: str) -> bytes:
        """As a CloudEvent 1.0 in JSON (structured mode)."""
        data = {
            "alert_id": self.alert_id,
            "device_id": self.device_id,
            "code": self.code,
            "severity": self.severity,
            "state": self.state,
            "opened_at": _iso(self.opened_at),
            "closed_at": None if self.closed_at is None else _iso(self.closed_at),
            "value": self.value,
            "limit": self.limit,
            "quality_bits": self.quality_bits,
            "text": self.text,
        }
        event = {
            "specversion": "1.0",
            "id": self.id,
            "source": source,
            "type": TYPE + self.state,
            "subject": self.device_id,
            "time": _iso(self.opened_at if self.closed_at is None else self.closed_at),
            "datacontenttype": "application/json",
            "data": data,
        }
        return msgspec.json.encode(event)

    def template(self) -> bytes:
        """The properties that a template of Notification Hubs takes: every value is a string."""
        facts = {
            "id": self.id,
            "message": self.text,
            "alert_id": self.alert_id,
            "device_id": self.device_id,
            "code": self.code,
            "severity": self.severity,
            "state": self.state,
            "opened_at": _iso(self.opened_at),
            "closed_at": "" if self.closed_at is None else _iso(self.closed_at),
            "value": "" if self.value is None else f"{self.value:.6g}",
            "limit": "" if self.limit is None else f"{self.limit:.6g}",
        }
        return msgspec.json.encode(facts)


def notices(batch: pa.RecordBatch, now: float) -> Iterator[Notice]:
    """The notifications of ``ALERT`` rows, in their order.

    Args:
        batch: of exactly that schema.
        now: s since 1970.

    Raises:
        ValueError: the schema is another one.
    """
    if not batch.schema.equals(ALERT):
        raise ValueError("alerts to be told are of another schema than ALERT")
    for name in ("opened_at", "closed_at"):
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, name, batch.column(name).cast(pa.int64()))
    for row in batch.to_pylist():
        yield Notice(since=now, **{**row, "value": _shortest(row["value"]), "limit": _shortest(row["limit"])})


def _shortest(value: Any) -> float | None:
    """The shortest decimal that is this float32; None where there is no finite number, which JSON cannot say."""
    return float(str(np.float32(value))) if value is not None and np.isfinite(value) else None


def _time(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)


def _iso(micros: int) -> str:
    return _time(micros).isoformat().replace("+00:00", "Z")
