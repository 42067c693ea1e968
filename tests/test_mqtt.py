import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bytewax.operators as op
import msgspec
import pyarrow as pa
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink
from conftest import RunFlow
from mqtt_parts import commit, numbers, payloads, publish, read, settings_for, until
from servers import Certificates, Mosquitto

from voltmill.connectors.drain import Drain
from voltmill.connectors.mqtt import MqttPartition, MqttSettings, MqttSource, Publisher, TlsSettings
from voltmill.flows.broker import free_port
from voltmill.kernels.schema import RAW

Start = Callable[..., Mosquitto]
FLOW = Path(__file__).parent / "mqtt_flow.py"


@pytest.fixture(scope="module")
def broker(mosquitto: Start) -> Mosquitto:
    return mosquitto()


@pytest.fixture
def build() -> Iterator[Callable[..., MqttPartition]]:
    """Builds partitions and closes them at the end of the test."""
    parts: list[MqttPartition] = []

    def make(settings: MqttSettings, offset: int = 0, drain: Drain | None = None, ready: bool = True) -> MqttPartition:
        source = MqttSource(settings, drain=drain)
        parts.append(source.build_part("in", settings.topics[0], ("v1", offset)))
        if ready:
            until(lambda: parts[-1].subscribed)
        return parts[-1]

    yield make
    for part in parts:
        part.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_rows_are_raw_numbered_and_in_order(
    broker: Mosquitto, build: Callable[..., MqttPartition], protocol: str
) -> None:
    settings = settings_for(broker, f"raw{protocol}", protocol=protocol, max_batch_rows=100)
    part = build(settings, offset=1000)
    before = time.time_ns() // 1000
    publish(settings, f"raw{protocol}/gw/1", numbers(150))
    publish(settings, f"raw{protocol}/gw/ü", numbers(100, 150))
    batches = read(part, 250)
    table = pa.Table.from_batches(batches)
    assert table.schema.equals(RAW, check_metadata=True)
    table.validate(full=True)
    assert max(batch.num_rows for batch in batches) <= 100
    assert payloads(batches) == numbers(250)
    assert table["source_offset"].to_pylist() == list(range(1000, 1250))
    assert table["topic"].to_pylist() == [f"raw{protocol}/gw/1"] * 150 + [f"raw{protocol}/gw/ü"] * 100
    assert set(table["source"].to_pylist()) == {"mqtt"}
    assert set(table["source_partition"].to_pylist()) == {f"raw{protocol}/#"}
    times = table["ingest_time"].cast(pa.int64()).to_pylist()
    assert before <= min(times) and max(times) <= time.time_ns() // 1000
    assert part.snapshot()[:2] == ("v2", 1250)


def test_two_partitions_on_two_workers_pass_each_message_once(
    broker: Mosquitto, run_flow: RunFlow, tmp_path: Path, build: Callable[..., MqttPartition]
) -> None:
    settings = settings_for(broker, "two", topics=("two/a/#", "two/b/#"), max_batch_rows=64)
    for topic in settings.topics:  # the sessions exist before the messages come
        build(msgspec.structs.replace(settings, topics=(topic,))).close()
    publish(settings, "two/a/1", numbers(2000))
    publish(settings, "two/b/1", numbers(3000))
    drain = Drain()
    seen: dict[str, list[bytes]] = {"two/a/#": [], "two/b/#": []}

    def look(batch: pa.RecordBatch) -> int:
        seen[batch["source_partition"][0].as_py()].extend(batch["payload"].to_pylist())
        if sum(map(len, seen.values())) >= 5000:
            drain.request()
        return int(batch.num_rows)

    flow = Dataflow("two")
    out: list[int] = []
    batches = op.input("in", flow, MqttSource(settings, drain=drain))
    op.output("out", op.map("look", batches, look), TestingSink(out))
    run_flow(flow, recovery=tmp_path / "recovery", workers=2)
    assert seen == {"two/a/#": numbers(2000), "two/b/#": numbers(3000)}
    assert sum(out) == 5000
    again = build(msgspec.structs.replace(settings, topics=("two/a/#",)))  # all were acknowledged at the drain
    publish(settings, "two/a/1", [b"next"])
    assert payloads(read(again, 1)) == [b"next"]


def test_nothing_is_acknowledged_before_it_is_durable(broker: Mosquitto, build: Callable[..., MqttPartition]) -> None:
    settings = settings_for(broker, "durable")
    part = build(settings)
    publish(settings, "durable/a", numbers(30))
    assert payloads(read(part, 30)) == numbers(30)
    commit(part)  # these thirty are done
    publish(settings, "durable/a", numbers(20, 30))
    assert payloads(read(part, 20)) == numbers(20, 30)
    part.snapshot()  # taken, but never known to be durable
    part.close()
    again = build(settings)
    assert payloads(read(again, 20)) == numbers(20, 30)


def test_only_what_the_snapshot_covers_is_acknowledged(broker: Mosquitto, build: Callable[..., MqttPartition]) -> None:
    settings = settings_for(broker, "covers")
    part = build(settings)
    publish(settings, "covers/a", numbers(10))
    read(part, 10)
    part.snapshot()
    publish(settings, "covers/a", numbers(10, 10))
    assert payloads(read(part, 10)) == numbers(10, 10)
    part.close()
    assert payloads(read(build(settings), 10)) == numbers(10, 10)


def test_receive_maximum_bounds_what_is_in_flight(broker: Mosquitto, build: Callable[..., MqttPartition]) -> None:
    settings = settings_for(broker, "flight", receive_maximum=50)
    part = build(settings)
    publish(settings, "flight/a", numbers(120))
    got = payloads(read(part, 50))
    publish(settings, "flight/a", [b"120"])  # a round trip later still no more came
    assert part.next_batch() == [] and part.queued == 0
    while len(got) < 121:
        part.snapshot()
        got += payloads(read(part, 1))
    assert got == [*numbers(120), b"120"]


def test_a_blocked_flow_stops_the_socket_and_keeps_the_connection(
    broker: Mosquitto, build: Callable[..., MqttPartition], caplog: pytest.LogCaptureFixture
) -> None:
    size, count = 10_000, 1500
    bodies = [number.ljust(size) for number in numbers(count)]
    parts = []
    for name, options in {"full5": {}, "full3": {"protocol": "3.1.1"}, "empty": {"max_queue_messages": 10_000}}.items():
        options = {"max_queue_messages": 100, "keepalive_seconds": 2} | options
        settings = settings_for(broker, name, **options)
        parts.append(build(settings))
        publish(settings, f"{name}/a", bodies)
    until(lambda: parts[0].queued >= 100 and parts[1].queued >= 100 and parts[2].queued == count)
    highest, end = 0, time.monotonic() + 8  # far more than twice the keep-alive
    while time.monotonic() < end:
        highest = max(highest, parts[0].queued, parts[1].queued)
        time.sleep(0.05)
    assert highest <= 100 + (1 << 18) // size + 1  # what one read of the socket holds besides
    assert [payloads(read(part, count)) for part in parts] == 3 * [bodies]
    assert "lost" not in caplog.text and "broken" not in caplog.text


def test_large_messages_pass(broker: Mosquitto, build: Callable[..., MqttPartition]) -> None:
    settings = settings_for(broker, "large", max_batch_bytes=100_000)
    part = build(settings)
    bodies = [b"a" * 1_000_000, b"b", b"c" * 99_999, b"", b"d" * 10_000_000, b"e"]
    publish(settings, "large/a", bodies)
    batches = read(part, len(bodies))
    assert payloads(batches) == bodies
    sizes = [[len(body) for body in batch["payload"].to_pylist()] for batch in batches]
    assert all(sum(size) <= max(100_000, max(size) + 100) for size in sizes)


def test_drain_leaves_the_unread_with_the_broker(broker: Mosquitto, build: Callable[..., MqttPartition]) -> None:
    settings = settings_for(broker, "drain", max_batch_rows=10)
    drain = Drain()
    part = build(settings, drain=drain)
    publish(settings, "drain/a", numbers(40))
    until(lambda: part.queued == 40)
    assert payloads(part.next_batch()) == numbers(10)
    drain.request()
    assert part.next_batch() == [] and part.next_batch() == []  # waits for the epoch
    assert part.next_awake() > datetime.now(UTC)  # without spinning
    part.snapshot()
    with pytest.raises(StopIteration):
        part.next_batch()
    part.close()
    assert payloads(read(build(settings), 30)) == numbers(30, 10)


def test_a_broker_restart_loses_nothing(mosquitto: Start, build: Callable[..., MqttPartition]) -> None:
    broker = mosquitto(persistence=True)
    settings = settings_for(broker, "restart")
    part = build(settings)
    got: list[bytes] = []
    with Publisher(settings, "restart-publisher", max_in_flight=100) as publisher:
        for k in range(300):
            publisher.publish("restart/a", b"%d" % k)
            if k == 150:
                got += payloads(read(part, 50))
                broker.stop()
                publisher.publish("restart/a", b"while away")
                broker.start()
        publisher.drain(15)
    until(lambda: bool(got.extend(payloads(part.next_batch()))) or set(numbers(300)) <= set(got))
    assert set(got) == {*numbers(300), b"while away"}


def test_it_subscribes_again_if_the_broker_forgot_the_session(
    mosquitto: Start, build: Callable[..., MqttPartition], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "voltmill.mqtt")
    broker = mosquitto()
    settings = settings_for(broker, "forgot")
    part = build(settings)
    broker.stop()
    assert part.next_batch() == []
    until(lambda: "mqtt broker not reached" in caplog.text)
    assert caplog.text.count("mqtt broker not reached") == 1  # and not each time it tries
    broker.start()
    until(lambda: caplog.text.count("session_present=false") == 2 and part.subscribed)
    publish(settings, "forgot/a", [b"heard"])
    assert payloads(read(part, 1)) == [b"heard"]


def test_the_flow_starts_before_its_broker(
    mosquitto: Start, build: Callable[..., MqttPartition], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "voltmill.mqtt")
    broker = mosquitto()
    broker.stop()
    settings = settings_for(broker, "early")
    part = build(settings, ready=False)
    until(lambda: caplog.text.count("mqtt broker not reached") >= 2)
    assert part.next_batch() == []
    broker.start()
    until(lambda: part.subscribed)


def test_a_good_password_is_let_in_and_a_bad_one_is_tried_again(
    mosquitto: Start, build: Callable[..., MqttPartition], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "voltmill.mqtt")
    broker = mosquitto(users={"flow": "correct horse"})
    good = settings_for(broker, "login", username="flow", password="correct horse")
    for protocol in ("5", "3.1.1"):
        bad = msgspec.structs.replace(good, password="battery staple", protocol=protocol)
        caplog.clear()
        refused = build(bad, ready=False)
        until(lambda: caplog.text.count("mqtt login refused") >= 2)
        assert "user='flow' reason=\"" in caplog.text and "uthori" in caplog.text
        assert refused.next_batch() == []
        assert "staple" not in caplog.text
    part = build(good)
    publish(good, "login/a", [b"1"])
    assert payloads(read(part, 1)) == [b"1"]


def test_tls_with_client_certificate(
    mosquitto: Start,
    certificates: Certificates,
    build: Callable[..., MqttPartition],
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from servers import make_certificates

    caplog.set_level(logging.DEBUG, "voltmill.mqtt")
    broker = mosquitto(tls=certificates)
    files = {"cert_file": certificates.client_cert, "key_file": certificates.client_key}
    tls = TlsSettings(ca_file=certificates.ca_file, **files)
    settings = settings_for(broker, "tls", tls=tls)
    part = build(settings)
    bodies = [*numbers(200), b"x" * 1_000_000]
    publish(settings, "tls/a", bodies)
    assert payloads(read(part, 201)) == bodies

    stranger = make_certificates(tmp_path_factory.mktemp("stranger"))
    other_ca = msgspec.structs.replace(settings, tls=TlsSettings(ca_file=stranger.ca_file, **files))
    assert_refused(build, other_ca, caplog, "certificate verify failed")
    by_address = msgspec.structs.replace(settings, host="127.0.0.1")
    assert_refused(build, by_address, caplog, "certificate is not valid for '127.0.0.1'")
    no_certificate = msgspec.structs.replace(settings, tls=TlsSettings(ca_file=certificates.ca_file))
    assert_refused(build, no_certificate, caplog, "certificate required")
    unchecked = TlsSettings(ca_file=certificates.ca_file, check_server_name=False, **files)
    build(msgspec.structs.replace(by_address, tls=unchecked, client_id="unchecked"))


def assert_refused(
    build: Callable[..., MqttPartition], settings: MqttSettings, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    caplog.clear()
    part = build(msgspec.structs.replace(settings, client_id="refused"), ready=False)
    until(lambda: caplog.text.count(reason) >= 2)  # it said so, and tried again
    assert not part.subscribed
    part.close()


def test_kill_9_in_mid_stream_loses_and_doubles_nothing(broker: Mosquitto, tmp_path: Path, run_flow: RunFlow) -> None:
    count, settings = 6000, settings_for(broker, "kill", topics=("kill/#",))
    recovery, out = tmp_path / "recovery", tmp_path / "out.txt"
    run_flow(_empty_flow(), recovery=recovery)  # makes the recovery store
    command = [sys.executable, str(FLOW), str(broker.port), str(recovery), str(out), "0.2"]

    def lines() -> list[str]:
        return out.read_text().splitlines() if out.exists() else []

    processes = [subprocess.Popen(command)]
    try:
        until(lambda: "Sending SUBACK to kill-" in broker.log, 60)  # it may have to compile the kernels first
        with Publisher(settings, "kill-publisher", max_in_flight=100) as publisher:
            for k in range(count):
                publisher.publish("kill/a", b"%d" % k)
                if k in (1500, 3000):
                    until(lambda k=k: len(lines()) > k - 500, 60)
                    processes[-1].kill()
                    processes[-1].wait()
                    processes.append(subprocess.Popen(command))
            publisher.drain(30)
        until(lambda: str(count - 1) in lines(), 60)
        processes[-1].terminate()
        assert processes[-1].wait(30) == 0
    finally:
        processes[-1].kill()
        processes[-1].wait()
    assert [int(line) for line in lines()] == list(range(count))


def _empty_flow() -> Dataflow:
    from bytewax.testing import TestingSource

    flow = Dataflow("empty")
    op.output("out", op.input("in", flow, TestingSource([])), TestingSink([]))
    return flow


def test_publisher_says_that_no_broker_is_there() -> None:
    settings = MqttSettings(port=free_port(), reconnect_min_seconds=0.05)
    with Publisher(settings, "alone") as publisher:
        with pytest.raises(TimeoutError, match="not reached, nothing sent for 0.05 s"):
            publisher.publish("a", b"1", timeout=0.05)
        publisher.drain(0.0)


def test_publisher_is_bounded_and_counts(mosquitto: Start, caplog: pytest.LogCaptureFixture) -> None:
    broker = mosquitto()
    settings = settings_for(broker, "bounded")
    with Publisher(settings, "bounded", max_in_flight=10) as publisher:
        for payload in numbers(100):
            publisher.publish("bounded/a", payload)
            assert publisher.in_flight <= 10
        publisher.drain(10)
        assert (publisher.sent, publisher.acknowledged) == (100, 100)
        with pytest.raises(ValueError, match="wildcards"):
            publisher.publish("bounded/#", b"")
        broker.stop()
        for payload in numbers(10):
            publisher.publish("bounded/a", payload)
        with pytest.raises(TimeoutError, match="10 of 110 messages unacknowledged"):
            publisher.drain(0.05)
    assert "mqtt publisher closed unacknowledged=10" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0}, "mqtt.port 0"),
        ({"host": ""}, "mqtt.host is empty"),
        ({"topics": ()}, "at least one topic filter"),
        ({"topics": ("a/#", "a/#")}, "each only once"),
        ({"topics": ("a/#/b",)}, "'a/#/b' is no topic filter"),
        ({"topics": ("a+/b",)}, "'a\\+/b' is no topic filter"),
        ({"topics": ("$share/group/a",)}, "shared subscriptions"),
        ({"client_id": "a b"}, "mqtt.client_id 'a b'"),
        ({"password": "x"}, "without mqtt.username"),
        ({"receive_maximum": 65_536}, "mqtt.receive_maximum"),
        ({"linger_ms": 0}, "mqtt.linger_ms"),
        ({"keepalive_seconds": 0}, "mqtt.keepalive_seconds"),
        ({"timeout_seconds": 0.0}, "mqtt.timeout_seconds"),
        ({"reconnect_min_seconds": 60.0}, "mqtt.reconnect_min_seconds"),
    ],
)
def test_nonsense_in_the_settings_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MqttSettings(**options)


def test_tls_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without mqtt.tls.cert_file"):
        TlsSettings(key_file="k.pem")
    with pytest.raises(ValueError, match="mqtt.tls.ca_file 'nowhere.pem' cannot be used"):
        TlsSettings(ca_file="nowhere.pem").context()
    with pytest.raises(ValueError, match="cert_file 'nowhere.pem'"):
        TlsSettings(cert_file="nowhere.pem").context()


def test_an_idle_connection_is_asked_now_and_then_and_not_more(
    mosquitto: Start, build: Callable[..., MqttPartition]
) -> None:
    broker = mosquitto()
    part = build(settings_for(broker, "idle"))
    until(lambda: part.subscribed)
    publish(settings_for(broker, "idle"), "idle/1", numbers(10))
    read(part, 10)
    before = broker.log.count("Received PINGREQ")
    began = time.monotonic()
    until(lambda: broker.log.count("Received PINGREQ") >= before + 3)
    # One a second: a third of timeout_seconds. A storm of them would come in milliseconds.
    assert 1.5 < time.monotonic() - began < 20
