"""Batches of alerts."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from voltmill.connectors.notify_notice import Notice, notices
from voltmill.kernels.schema import ALERT

OPENED = datetime(2026, 11, 22, 10, 2, 3, tzinfo=UTC)


def opened(alert_id: str = "5f0c", device_id: str = "site-a/rack-1/module-7", **facts: Any) -> dict[str, Any]:
    usual = {
        "alert_id": alert_id,
        "device_id": device_id,
        "code": "OVER_TEMP_ALARM",
        "severity": "alarm",
        "opened_at": OPENED,
        "closed_at": None,
        "value": 61.2,
        "limit": 60.0,
        "quality_bits": 0,
    }
    return usual | facts


def closed(alert_id: str = "5f0c", device_id: str = "site-a/rack-1/module-7", **facts: Any) -> dict[str, Any]:
    return opened(alert_id, device_id, **{"closed_at": OPENED + timedelta(seconds=602), "value": 63.9} | facts)


def alerts(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), ALERT)


def noticed(*rows: dict[str, Any], now: float = 0.0) -> list[Notice]:
    return list(notices(alerts(rows), now))
