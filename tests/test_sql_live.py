"""The live flow on PostgreSQL: an outage, a refused device, kill -9."""

import json
import signal
from collections.abc import Callable

import pyarrow.dataset as ds
import pytest
from live_flow import Live, accepted, fleet, publish
from servers import PostgreSQL
from sql_tables import on, query, reject, table

from voltmill.kernels.schema import PREDICTION_KEY


@pytest.mark.slow
def test_outage_refused_rows_and_kill_9(live: Callable[..., Live], postgresql: PostgreSQL) -> None:
    where = on(postgresql, timeout_seconds=1.0)
    flow = live()
    text = flow.config.read_text()
    sqlite = f'url = "sqlite:///{flow.folder}/voltmill.db"'
    assert sqlite in text
    ours = f"url = {json.dumps(where.url)}\ndriver = {json.dumps(where.driver)}\ntimeout_seconds = 1.0"
    flow.config.write_text(text.replace(sqlite, ours))
    table(where).prepare()
    refused_device = "site-1/gw-1/pack-1/module-02"
    reject(where, f"NEW.device_id = '{refused_device}'")
    flow.stored = lambda: query(where, "SELECT count(*) FROM predictions")[0][0]  # type: ignore[method-assign]

    sent = fleet(20, 300.0)
    thirds = [sent[k * len(sent) // 3 : (k + 1) * len(sent) // 3] for k in range(3)]
    first = flow.start()
    flow.subscribed(1)
    publish(flow.port, thirds[0])
    flow.until(lambda: flow.stored() > 0, "nothing stored")
    postgresql.pause()
    try:
        publish(flow.port, thirds[1])
        flow.until(lambda: f"waiting for the database {where.place}" in flow.log(), "not waiting")
    finally:
        postgresql.resume()
    flow.until(lambda: f"the database {where.place} is back" in flow.log(), "not back")
    first.kill()
    first.wait()
    second = flow.start()
    flow.subscribed(2)
    publish(flow.port, thirds[2])
    flow.settled(len(sent) * 19 // 20)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0

    good = [row for row in flow.table("telemetry") if accepted(row)]
    lake = ds.dataset(str(flow.folder / "lake/predictions"), format="parquet").to_table().to_pylist()
    in_lake = sorted(tuple(row[name] for name in PREDICTION_KEY) for row in lake)
    in_sql = query(where, f"SELECT {', '.join(PREDICTION_KEY)} FROM predictions")
    letters = [json.loads(row["payload"]) for row in flow.table("dead_letters") if row["stage"] == "sql"]
    assert len(in_lake) == len(set(in_lake)) == len(good)
    assert {row["device_id"] for row in letters} == {refused_device}
    of_device = [row for row in lake if row["device_id"] == refused_device]
    assert sorted(row["source_offset"] for row in letters) == sorted(row["source_offset"] for row in of_device)
    assert len(in_sql) == len(in_lake) - len(letters) > 500
    assert where.server.password not in flow.log()
