"""The lake in Azure Blob Storage: every promise of the sink, against Azurite."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_flow import Live, accepted, assert_complete, fleet, publish
from servers import Azurite, Mosquitto
from stored_flow import telemetry
from test_lake import STEPS, STORE, check_each_row_once, files, offsets, read, sink

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_source import LakeSource
from voltmill.connectors.outage import Patience
from voltmill.connectors.store import LakeAwayError, LakeError, Store
from voltmill.flows.compare import compare
from voltmill.flows.compare import read as read_predictions

FOLDER = "telemetry/date=2026-11-22/shard=00"
_numbers = count()


@pytest.fixture
def lake(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a lake in a container that is not there yet; adlfs finds the credentials in the environment."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    return f"abfs://lake-{next(_numbers)}/some/folder"


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(3, 25), st.sampled_from([0, 2_000, 10**6]))
def test_each_row_is_there_once_and_in_order_whatever_crashes(
    lake: str, steps: list[int | str], max_file_rows: int, max_snapshot_bytes: int
) -> None:
    check_each_row_once(
        f"{lake}-{next(_numbers)}", steps, max_file_rows=max_file_rows, max_snapshot_bytes=max_snapshot_bytes
    )


def test_what_goes_in_comes_out(lake: str) -> None:
    rows = telemetry(0, 300, voltage_volt=7.5, charge_ah=1e-9)
    part = sink(lake, max_file_rows=100).build_part("out", "00", None)
    part.write_batch([rows.slice(0, 150), rows.slice(150)])
    part.close()
    assert read(lake).to_pylist() == rows.to_pylist()


def test_files_are_listed_fresh_moved_and_removed(lake: str) -> None:
    mine, other = LakeSettings(url=lake).open(), LakeSettings(url=lake, storage_options={"max_concurrency": 1}).open()
    mine.make()
    mine.make()
    assert mine.names("a") == mine.find("a") == other.names("a") == []
    mine.write("a/b/x", pa.py_buffer(b"first"))
    assert other.names("a") == ["b"] and other.names("a/b") == ["x"] and other.find("a") == ["b/x"]
    mine.write("a/b/x", pa.py_buffer(b"second"))
    assert pa.PythonFile(other.open("a/b/x"), "r").read() == b"second"
    mine.move("a/b/x", "c/x")
    mine.move("a/b/x", "c/x")  # as after an answer that was lost
    assert other.find("a") == [] and other.names("c") == ["x"]
    mine.remove("c/x")
    mine.remove("c/x")
    assert other.names("c") == []
    with pytest.raises(FileNotFoundError):
        mine.open("c/x")


def test_orphans_are_removed_and_an_archive_without_its_store_is_set_aside(lake: str) -> None:
    part = sink(lake, max_file_rows=5).build_part("out", "00", None)
    part.write_batch([telemetry(0, 5)])
    state = part.snapshot()
    part.write_batch([telemetry(5, 5), telemetry(10, 5)])
    assert len(files(lake)) == 3
    part = sink(lake, max_file_rows=5).build_part("out", "00", state)
    assert files(lake) == [f"{FOLDER}/{STORE}-0000000000.parquet"]
    part.close()
    sink(lake).build_part("out", "00", None)
    assert files(lake) == []
    store = LakeSettings(url=lake).open()
    assert len(store.names("_set_aside")) == 1


def test_the_last_request_of_a_killed_process_may_come_late(lake: str) -> None:
    part = sink(lake, max_file_rows=5, attempt_seconds=1.5).build_part("out", "00", None)
    part.write_batch([telemetry(0, 5)])
    part.snapshot()
    LakeSettings(url=lake).open().write(f"{FOLDER}/{STORE}-0000000007.parquet", pa.py_buffer(b"late"))
    deadline, place = time.monotonic() + 30, 5
    while len(files(lake)) != place // 5:
        assert time.monotonic() < deadline
        part.write_batch([telemetry(place, 5)])
        place += 5
        time.sleep(0.6)
    part.close()
    assert offsets(lake) == list(range(place))


@pytest.mark.parametrize(
    ("away", "back", "attempt_seconds"),
    [
        (Azurite.stop, Azurite.start, 30.0),  # time for the client's own retries, if they were not switched off
        (Azurite.pause, Azurite.resume, 1.0),
    ],
)
def test_an_outage_is_waited_for_and_work_goes_on_within_five_seconds(
    lake: str,
    azurite: Azurite,
    away: Callable[[Azurite], None],
    back: Callable[[Azurite], None],
    attempt_seconds: float,
) -> None:
    waits: list[bool] = []
    patience = Patience("the lake", on_waiting=waits.append)
    part = sink(lake, patience=patience, max_file_rows=4, attempt_seconds=attempt_seconds).build_part("out", "00", None)
    returned: list[float] = []

    def restore() -> None:
        time.sleep(3)
        back(azurite)
        returned.append(time.monotonic())

    state: Any = None
    steps: list[Callable[[], Any]] = [
        lambda: part.write_batch([telemetry(0, 4)]),
        lambda: sink(lake, patience=patience, attempt_seconds=attempt_seconds, existing=True).build_part(
            "out", "00", state
        ),
    ]
    for step in steps:
        away(azurite)
        helper = threading.Thread(target=restore)
        helper.start()
        try:
            step()
            seconds = time.monotonic() - returned[-1]
        finally:
            helper.join()
        assert seconds < 5
        state = part.snapshot()
    assert waits == [True, False] * 2
    assert offsets(lake) == [0, 1, 2, 3]


def test_reading_waits_too(lake: str, azurite: Azurite) -> None:
    part = sink(lake, max_file_rows=50).build_part("out", "00", None)
    part.write_batch([telemetry(0, 100)])
    reader = LakeSource(LakeSettings(url=lake, attempt_seconds=0.5), batch_rows=50).build_part("in", "lake", None)
    found = reader.next_batch()[0].num_rows
    azurite.pause()
    back = threading.Timer(2.0, azurite.resume)
    back.start()
    try:
        found += reader.next_batch()[0].num_rows
    finally:
        back.join()
    assert found == 100


def test_no_secret_is_told(azurite: Azurite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("azure").setLevel(logging.WARNING)  # as the connector leaves it
    wrong = azurite.connection_string.replace(azurite.key, "c2VjcmV0LWtleS1vZi1vdXJz")
    store = Store("abfs://lake/x", {"connection_string": wrong}, patience=Patience("the lake", seconds=0.3))
    told = []
    with pytest.raises(LakeError, match="cannot make it: .*failed to authenticate .*AuthorizationFailure") as refused:
        store.make()
    assert not isinstance(refused.value, LakeAwayError)  # a wrong key at the start does not pass
    told.append(str(refused.value))
    with pytest.raises(LakeAwayError, match="cannot write a: .*AuthorizationFailure") as refused:
        store.write("a", pa.py_buffer(b"x"))  # one that was changed while the flow runs does
    told.append(str(refused.value))
    with pytest.raises(LakeError, match="malformed") as refused:
        Store("abfs://lake/x", {"connection_string": "AccountKey:c2VjcmV0LWtleS1vZi1vdXJz"})
    told.append(str(refused.value))
    with pytest.raises(LakeError) as refused:
        Store("abfs://no-such/x", {"account_name": "x", "account_key": "c2VjcmV0LWtleS1vZi1vdXJz!"}).make()
    told.append(str(refused.value))
    told += [record.getMessage() for record in caplog.records]
    assert len(told) > 4 and not any("c2VjcmV0" in line for line in told)
    assert "c2VjcmV0" not in repr(LakeSettings(url="abfs://a/b", storage_options={"connection_string": wrong}))


class AzureLive(Live):
    """A live flow whose lake is in Azurite; the connection string comes from the environment."""

    url = ""

    def configure(self, partitions: int) -> None:
        super().configure(partitions)
        text = self.config.read_text()
        local = f'url = "{self.folder}/lake"\n'
        assert local in text
        options = '{ connection_string = "${LAKE_CONNECTION}" }'
        self.config.write_text(
            text.replace(local, f'url = "{self.url}"\nstorage_options = {options}\nattempt_seconds = 2.0\n')
        )

    @property
    def settings(self) -> LakeSettings:
        return LakeSettings(url=self.url, storage_options={"connection_string": os.environ["LAKE_CONNECTION"]})

    def table(self, name: str) -> list[dict[str, Any]]:
        store = self.settings.open()
        paths = [f"{name}/{path}" for path in store.find(name)]
        return [row for path in paths for row in pa.parquet.read_table(store.open(path)).to_pylist()]


@pytest.fixture
def flow(
    lake: str, azurite: Azurite, mosquitto: Callable[..., Mosquitto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AzureLive]:
    monkeypatch.setenv("LAKE_CONNECTION", azurite.connection_string)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setattr(AzureLive, "url", lake)
    made = AzureLive(tmp_path, mosquitto().port)
    yield made
    made.end()


@pytest.mark.slow
def test_a_live_flow_into_azure_survives_kills_and_outages(flow: AzureLive, azurite: Azurite) -> None:
    sent = fleet(20, 300.0)
    pieces = [sent[k * len(sent) // 4 : (k + 1) * len(sent) // 4] for k in range(4)]
    flow.start()
    flow.subscribed(1)
    publish(flow.port, pieces[0])
    flow.until(lambda: flow.stored() >= 0.8 * len(pieces[0]), "nothing stored")
    time.sleep(1.0)  # the age of a file: the next rows have one written
    azurite.pause()
    publish(flow.port, pieces[1])
    flow.until(lambda: "waiting for the lake" in flow.log(), "no word of the lake")
    azurite.resume()
    flow.until(lambda: "the lake is back" in flow.log(), "not gone on")
    flow.processes[-1].kill()
    azurite.stop()
    publish(flow.port, pieces[2])
    flow.start()
    flow.until(lambda: flow.log().count("waiting for the lake") >= 2, "no word of the lake")
    azurite.start()
    flow.subscribed(2)
    publish(flow.port, pieces[3])
    flow.settled(len(sent))
    flow.processes[-1].kill()
    flow.start()
    flow.subscribed(3)
    flow.drain()
    assert_complete(flow, sent, repeats=True)
    assert azurite.key not in flow.log()
    assert sum(accepted(row) for row in flow.archived()) == flow.stored()
    command = ["replay", "-c", str(flow.config), "--lake", flow.url, "--out", str(flow.folder / "out")]
    subprocess.run([sys.executable, "-m", "voltmill.flows.cli", *command], check=True)
    assert compare(read_predictions(flow.settings), read_predictions(str(flow.folder / "out"))).identical
