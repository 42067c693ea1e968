"""Models in the live flow as its users run it: one takes over without a restart, one behind HTTP hangs and dies."""

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
from endpoint_server import EndpointServer, echo, hang, slowly
from live_flow import Live, accepted, broken, fleet, publish
from test_choice import write
from test_estimate import CONTRACT

from voltmill.operators.model import Feature, load

SOC = load("lg_hg2_soc")


def test_a_file_in_the_folder_takes_over_without_a_restart(live: Callable[..., Live]) -> None:
    folder = "models"
    flow = live(more=f'\n[models]\nfolder = "{folder}"\nlook_seconds = 0.1\n')
    sent = fleet(10, 300.0)
    flow.start()
    flow.subscribed(1)
    publish(flow.port, sent[: len(sent) // 2])
    flow.complete(sent[: len(sent) // 2])
    (flow.folder / folder).mkdir()
    write(flow.folder / folder / "candidate.onnx", value=42.0)
    write(flow.folder / folder / "lg_hg2_soc.onnx", value=77.0, name="lg_hg2_soc", version="9")
    (flow.folder / folder / "broken.onnx").write_bytes(b"no model")
    time.sleep(0.5)  # longer than an epoch: the next rows come after a snapshot
    publish(flow.port, sent[len(sent) // 2 : -20])
    flow.until(lambda: flow.log().count("model in force") >= 2, "not taken over")
    time.sleep(0.5)
    publish(flow.port, sent[-20:])
    flow.until(lambda: stored(flow, "mode = 'live'") >= len(sent) - broken(sent), "not stored")
    flow.drain()
    by_model = Counter((r["model_name"], r["model_version"], r["mode"]) for r in flow.table("predictions"))
    assert set(by_model) == {
        ("lg_hg2_soc", SOC.contract.version, "live"),
        ("lg_hg2_soc", "9", "live"),
        ("candidate", "1", "shadow"),
    }
    rows = [row for row in flow.archived() if accepted(row)]
    counting = [r for r in flow.table("predictions") if r["mode"] == "live"]
    assert len(counting) == len(rows), "each sample has one value that counts"
    assert {r["value"] for r in counting if r["model_version"] == "9"} <= {77.0, None}
    told = [line for line in flow.log().splitlines() if "model not used" in line]
    assert len(told) == 2 and "is not there" in told[0] and "broken.onnx" in told[1]
    assert len(flow.processes) == 1


@pytest.fixture
def endpoint() -> Iterator[EndpointServer]:
    server = EndpointServer()  # answers with what it was asked: the contract below makes a SOC of it
    yield server
    server.stop()


def configuration(server: EndpointServer) -> str:
    return f"""
[[model]]
name = "far"
[model.endpoint]
url = "{server.url}"
contract = "far.json"
key = "${{FAR_KEY}}"
timeout_seconds = 2.0
deadline_seconds = 2.0
pause_seconds = 0.2
longest_pause_seconds = 0.5

[[model]]
name = "lg_hg2_soc"
mode = "shadow"
"""


def contract() -> bytes:
    features = (
        Feature(name="cell_voltage_mean_volt", offset=0, scale=1, low=2, high=5),
        Feature(name="cells_believed", offset=0, scale=1, low=1, high=100),
    )
    made = msgspec.structs.replace(CONTRACT, name="far", features=features, fusion=None, dt_range_seconds=(0.0, 900.0))
    return msgspec.json.encode(made)


def test_an_endpoint_that_hangs_and_dies_costs_no_row_and_holds_up_no_archive(
    live: Callable[..., Live], endpoint: EndpointServer
) -> None:
    flow = live(more=configuration(endpoint))
    (flow.folder / "far.json").write_bytes(contract())
    sent, key = fleet(20, 600.0), {"FAR_KEY": "s3cret"}
    thirds = [sent[k * len(sent) // 3 : (k + 1) * len(sent) // 3] for k in range(3)]
    flow.start(**key)
    flow.subscribed(1)
    endpoint.usual = hang
    began = time.monotonic()
    publish(flow.port, thirds[0])
    flow.until(
        lambda: stored(flow, HERE) >= 0.97 * len(thirds[0]), "the model in process waits for the one behind HTTP"
    )
    assert time.monotonic() - began < 20
    flow.until(lambda: stored(flow, "mode = 'fallback'") > 0, "nobody gave up waiting")
    endpoint.usual = slowly(0.3)
    publish(flow.port, thirds[1])
    flow.until(lambda: stored(flow, HERE) >= 1.5 * len(thirds[0]), "nothing more is stored")
    flow.processes[-1].kill()  # rows are on their way to the endpoint
    flow.processes[-1].wait()
    endpoint.usual = echo
    flow.start(**key)
    flow.subscribed(2)
    publish(flow.port, thirds[2])
    flow.complete(sent, models=2)
    flow.drain()
    rows = {(r["device_id"], r["event_time"]) for r in flow.archived() if accepted(r)}
    found = Counter((r["device_id"], r["event_time"]) for r in flow.table("predictions") if r["model_name"] == "far")
    assert set(found) == rows and set(found.values()) == {1}, "each sample has one answer, or one fallback"
    # A fallback of an epoch that the kill undid was asked about again, and answered.
    modes = Counter(r["mode"] for r in flow.table("predictions") if r["model_name"] == "far")
    assert modes["live"] > len(sent) / 3 and set(modes) <= {"live", "fallback"}
    letters = [r for r in flow.table("dead_letters") if r["reason"] == "model_failed"]
    assert bool(letters) == bool(modes["fallback"]) and "s3cret" not in flow.log() + str(letters)


#: Predictions of the model in process.
HERE = "model_name = 'lg_hg2_soc'"


def stored(flow: Live, where: str) -> int:
    """How many such predictions are in the database."""
    with sqlite3.connect(flow.folder / "voltmill.db") as db:
        try:
            return int(db.execute(f"select count(*) from predictions where {where}").fetchone()[0])
        except sqlite3.OperationalError:
            return 0
