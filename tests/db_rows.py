"""Rows of predictions and alerts for the tests of the reporting views, and what a view says of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from sql_tables import connect, is_postgresql, table

from voltmill.connectors.sql import SqlSettings
from voltmill.kernels.schema import ALERT, PREDICTION, Quality

START = datetime(2026, 1, 1, tzinfo=UTC)
YEAR = timedelta(seconds=31_557_600)
EVERY_BIT = sum(Quality)


def minute(n: float) -> datetime:
    return START + n * timedelta(minutes=1)


def row(device: str, time: datetime, value: float | None, bits: int = 0, **columns: Any) -> dict[str, Any]:
    """A prediction of SOC by the model a, live, unless ``columns`` say otherwise."""
    about: dict[str, Any] = {"target": "soc", "model_name": "a", "model_version": "1", "mode": "live"} | columns
    about |= {"model_sha256": columns.get("model_sha256", 2 * about["model_name"][0] * 32)}
    about |= {"unit": "cycles" if about["target"] == "rul" else "percent", "quality_bits": bits}
    interval = {"lo90": None, "hi90": None} if value is None else {"lo90": value - 1, "hi90": value + 1}
    lineage = {"source": "test", "source_partition": "part", "source_offset": 0}
    return {"device_id": device, "event_time": time, "value": value} | interval | about | lineage


M1, M2, M3, LONE, GHOST = "g1/p/m1", "g1/p/m2", "g2/p/m3", "lone", "g3/p/ghost"

PREDICTIONS = [
    row(M1, minute(0), 50.0),
    row(M1, minute(1), 51.0),
    row(M1, minute(1), 52.0, model_name="b"),  # another live model at the same time: the lower digest is shown
    row(M1, minute(2), None, Quality.OUT_OF_DOMAIN),
    row(M1, minute(3), 10.0, mode="shadow", model_name="s"),
    row(M1, minute(4), 99.0, mode="replay", model_name="r"),
    row(M2, minute(4), 41.0),
    row(M2, minute(5), 40.0, Quality.MODEL_FAILED, mode="fallback", model_name="coulomb"),
    row(M3, minute(1), 60.0, model_name="z"),
    row(M3, minute(1), 61.0, EVERY_BIT, mode="fallback", model_name="coulomb"),  # as the live one speaks, it counts
    row(LONE, minute(1), None, Quality.UNKNOWN_CELL),
    row(GHOST, minute(1), 30.0, mode="shadow", model_name="s"),
    row(M1, START, 100.0, target="soh"),
    row(M1, START + YEAR / 2, 99.0, target="soh"),
    row(M1, START + YEAR / 2, 90.0, target="soh", model_name="other"),
    row(M1, START + YEAR, 97.0, target="soh", model_version="2", model_sha256="ff" * 32),  # a newer file of a
    row(M1, START + YEAR, 20.0, target="soh", mode="shadow", model_name="s"),
    row(M3, minute(0), 79.0, target="soh"),
    row(M1, START + YEAR, 300.0, Quality.WARM_UP, target="rul"),
    row(M2, minute(3), 200.0, target="rul"),
    row(M3, minute(0), 200.0, target="rul"),
    row(M3, minute(1), None, target="rul"),
]


def alert(alert_id: str, device: str, severity: str, closed: datetime | None = None, **columns: Any) -> dict[str, Any]:
    about = {"alert_id": alert_id, "device_id": device, "code": "OVER_TEMP_ALARM", "severity": severity}
    times = {"opened_at": minute(1), "closed_at": closed}
    return about | times | {"value": 61.5, "limit": 60.0, "quality_bits": 0} | columns


ALERTS = [
    [alert("1", M1, "critical"), alert("2", M1, "warning"), alert("3", M2, "warning", value=None, limit=None)],
    [alert("2", M1, "warning", minute(9), value=63.0)],  # it closes
]


def fill(where: SqlSettings) -> None:
    """Write all of it as the flow does."""
    made = table(where)
    made.prepare()
    out = made.writer()
    for k in range(0, len(PREDICTIONS), 5):
        assert out.write([pa.RecordBatch.from_pylist(PREDICTIONS[k : k + 5], schema=PREDICTION)]) == []
    out.close()
    alerts = table(where, table="alerts", schema=ALERT, key=("alert_id",))
    alerts.prepare()
    out = alerts.writer()
    for batch in ALERTS:
        assert out.write([pa.RecordBatch.from_pylist(batch, schema=ALERT)]) == []
    out.close()


def view(where: SqlSettings, text: str) -> list[dict[str, Any]]:
    """What ``SELECT * FROM text`` gives, times as such in UTC."""
    connection = connect(where)
    try:
        if is_postgresql(where):
            connection.execute("SET TIME ZONE 'UTC'")
        cursor = connection.execute(f"SELECT * FROM {text}")
        names = [about[0] for about in cursor.description]
        rows = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
    finally:
        connection.close()
    return [{name: _value(name, value) for name, value in each.items()} for each in rows]


def columns(where: SqlSettings, name: str) -> list[str]:
    connection = connect(where)
    try:
        return [about[0] for about in connection.execute(f"SELECT * FROM {name}").description]
    finally:
        connection.close()


def _value(name: str, value: Any) -> Any:
    if name == "day":
        return str(value)
    if not name.endswith(("_time", "opened_at")) or value is None:
        return value
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)
