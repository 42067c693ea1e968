"""The gateway as a whole, in a process of its own: outage, full store, kill -9, drain, and a login that is refused."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from gateway_flow import Gateway
from gateway_hubs import (
    KEY,
    HttpsHubServer,
    MqttHubServer,
    ScriptedHub,
    answers,
    connection_string,
    hang,
    take,
    take_and_hang_up,
)
from live_flow import publish
from servers import Certificates, Mosquitto

from voltmill.connectors.drain import Drain
from voltmill.connectors.gateway import GatewaySink
from voltmill.connectors.gateway_sender import Sender, entry_bytes
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.gateway_store import GatewayStore
from voltmill.connectors.outage import Patience
from voltmill.connectors.pack import unpack
from voltmill.flows import gateway as flow
from voltmill.flows.broker import free_port
from voltmill.flows.config import ConfigError, load
from voltmill.flows.gateway_metrics import GatewayMetrics
from voltmill.flows.warm_up import raw_batch

Make = Callable[..., Gateway]


@pytest.fixture
def gateway(tmp_path: Path, mosquitto: Callable[..., Mosquitto], certificates: Certificates) -> Iterator[Make]:
    """Makes a gateway on a broker of its own; what still runs at the end is killed."""
    made: list[Gateway] = []

    def make(**options: Any) -> Gateway:
        made.append(Gateway(tmp_path / "gw", mosquitto().port, certificates.ca_file, **options))
        return made[-1]

    yield make
    for one in made:
        one.end()
        assert "sig=" not in one.log() and KEY not in one.log(), "a secret in the log"


@pytest.fixture
def https_hub(certificates: Certificates) -> Iterator[HttpsHubServer]:
    server = HttpsHubServer(certificates)
    yield server
    server.stop()


def once(arrived: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """What arrived, each message where it came first."""
    return list(dict.fromkeys(arrived))


def telemetry(count: int) -> list[tuple[str, bytes]]:
    """Messages of 20 modules, about 420 bytes each, that all differ."""
    cells = ",".join(["3.7125"] * 48)
    body = '{"device_id":"m-%d","seq":%d,"current_ampere":-1.25,"cell_voltage_volt":[' + cells + "]}"
    return [(f"voltmill/m-{k % 20}", (body % (k % 20, k)).encode()) for k in range(count)]


@pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
def test_the_hub_is_away_the_gateway_is_killed_and_all_arrives_in_order_and_late(gateway, certificates, tmp_path):
    (tmp_path / "hub").mkdir()
    hub = MqttHubServer(tmp_path / "hub", certificates)
    try:
        sent = telemetry(2200)
        parts = [sent[:500], sent[500:1200], sent[1200:1900], sent[1900:]]
        g = gateway(gateway="late_seconds = 1.0\nlinger_seconds = 0.05")
        first = g.start()
        g.subscribed(1)
        publish(g.port, parts[0])
        g.until(lambda: len(hub.messages()) >= 500, "not sent")
        assert hub.messages() == parts[0] and not any("late" in p for p in hub.properties())
        hub.stop()  # in good order: a killed one forgets who reads from it
        publish(g.port, parts[1])
        g.until(lambda: g.waiting() >= 700, "not stored")
        first.kill()
        first.wait()
        publish(g.port, parts[2])  # the broker keeps them
        g.start()  # a hub that is away is no error
        g.until(lambda: g.waiting() >= 1400, "not stored")
        time.sleep(1.0)  # so that all are late
        before = len(hub.packs)
        hub.start()
        g.until(lambda: len(once(hub.messages())) >= 1900, "not sent")
        late = [properties.get("late") for properties in hub.properties()[before:]]
        assert set(late) == {"true"}
        publish(g.port, parts[3])
        g.until(lambda: len(once(hub.messages())) >= len(sent), "not sent")
        assert once(hub.messages()) == sent and "late" not in hub.properties()[-1]
        g.drain()
        assert g.waiting() == 0
        assert "is away, messages are stored" in g.log() and "IoT Hub localhost, device gw-1 is back" in g.log()
    finally:
        hub.end()


def test_a_full_store_leaves_the_rest_to_the_broker_and_nothing_is_lost(gateway, https_hub):
    hub, port = https_hub, free_port()
    hub.usual = answers(503, "ErrorCode:ServiceUnavailable")
    g = gateway(
        server=hub.name,
        transport="https",
        gateway="max_store_bytes = 1_048_576",
        run=f"metrics_port = {port}",
    )
    first = g.start()
    g.subscribed(1)
    sent = telemetry(4000)
    publish(g.port, sent)
    g.until(lambda: "waiting for room in the gateway's store" in g.log(), "never full")
    shown = metrics(port)
    assert shown['voltmill_waiting{system="gateway_store"}'] == 1 and shown["voltmill_gateway_hub_away"] == 1
    assert 500_000 < shown["voltmill_gateway_store_bytes"] <= 1 << 20
    assert shown["voltmill_gateway_store_messages"] == g.waiting() == shown["voltmill_gateway_stored_total"] < len(sent)
    assert shown["voltmill_gateway_oldest_seconds"] > 0 and shown['voltmill_gateway_failures_total{kind="server"}'] > 0
    first.send_signal(signal.SIGKILL)
    first.wait()
    hub.usual = take
    g.start()
    g.until(lambda: len(once(hub.messages())) >= len(sent), "lost")
    assert once(hub.messages()) == sent == hub.messages()
    shown = metrics(port)
    assert shown["voltmill_gateway_sent_total"] == len(sent) and shown["voltmill_gateway_hub_away"] == 0
    assert shown['voltmill_gateway_packs_total{late="false"}'] == len(hub.packs)
    g.drain()


def metrics(port: int) -> dict[str, float]:
    text = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics").data.decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", text, re.MULTILINE)}


def test_killed_again_and_again_nothing_is_lost_and_doubles_are_whole_packs(gateway, https_hub):
    hub = https_hub
    g = gateway(server=hub.name, transport="https", gateway="linger_seconds = 0.02\nmax_message_bytes = 20_000")
    sent = telemetry(3000)
    step = len(sent) // 3
    for k in range(3):
        process = g.start()
        g.subscribed(k + 1)
        hub.script = [take, take_and_hang_up, answers(500), take_and_hang_up]
        arrived = len(hub.packs)
        publish(g.port, sent[k * step : (k + 1) * step] if k < 2 else sent[2 * step :])
        g.until(lambda arrived=arrived: len(hub.packs) > arrived + 6, "nothing sent")
        if k < 2:
            process.kill()
            process.wait()
    g.until(lambda: len(once(hub.messages())) >= len(sent), "lost")
    g.drain()
    assert once(hub.messages()) == sent, "each message, first come in order"
    assert len(hub.messages()) > len(sent), "nothing was sent twice: the test did not test it"
    stored: dict[int, tuple[str, bytes]] = {}
    for headers, body in hub.packs:
        _, first, last = headers["iothub-messageid"].split("-")
        numbered = dict(zip(range(int(first), int(last) + 1), unpack(body), strict=True))
        assert all(stored.setdefault(number, message) == message for number, message in numbered.items())
    assert [stored[number] for number in sorted(stored)] == sent, "each was stored once, whatever came again"


def test_a_drain_while_the_hub_hangs_takes_seconds_and_keeps_what_is_stored(gateway, https_hub):
    https_hub.script = [hang]
    g = gateway(server=https_hub.name, transport="https", gateway="drain_seconds = 0.5\nlinger_seconds = 0.0")
    process = g.start()
    g.subscribed(1)
    sent = telemetry(50)
    publish(g.port, sent)
    g.until(lambda: g.waiting() >= len(sent), "not stored")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0 and time.monotonic() - began < 10, g.log()
    assert g.waiting() == len(sent) and "leaving a client of the hub that hangs" in g.log()


def test_one_process_carries_far_more_than_2000_messages_a_second(tmp_path):
    """By the processor's time; 40,000 were measured for a whole process, with source and hub client."""
    sent, n = telemetry(20_000), 2000
    login = GatewaySettings(connection_string=connection_string(), linger_seconds=0.0)
    store = GatewayStore(tmp_path / "g.db", max_bytes=1 << 30, max_entry_bytes=entry_bytes(login))
    part = GatewaySink(store, patience=Patience("room")).build_part("store", "gateway", None)
    hub, began = ScriptedHub(), time.process_time()
    sender = Sender(login, store, hub)
    for k in range(0, len(sent), n):
        part.write_batch([raw_batch([payload for _, payload in sent[k : k + n]], offset=k)])
        part.snapshot()
    sender.start()
    while store.messages:
        time.sleep(0.01)
    spent = time.process_time() - began
    assert sender.close(1.0)
    store.close()
    print(f"{len(sent) / spent:.0f} messages a second of processor time")
    assert len(sent) / spent > 5000 and sum(len(unpack(m.body)) for m in hub.taken) == len(sent)


def test_a_wrong_key_ends_the_start_with_status_2_and_one_line(gateway, https_hub):
    wrong = "d3Jvbmcga2V5IG9mIGEgdGVzdA=="
    g = gateway(transport="https", login=connection_string(https_hub.name, key=wrong))
    assert g.start().wait(60) == 2
    lines = [line for line in g.log().splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and wrong not in g.log()
    assert lines[0].startswith(f"voltmill: [gateway] IoT Hub {https_hub.name}, device gw-1: it answers 401")
    assert lines[0].endswith("mend the SharedAccessKey, or the clock of this machine")


@pytest.mark.parametrize(
    ("login", "ca_file", "says"),
    [
        ("", "ok", "connection_string is empty"),
        ("device", "ok", "it answers 404: .*DeviceNotFound.*mend HostName and DeviceId"),
        ("good", "", "authority that is not trusted; name the authority in ca_file"),
        ("good", "none.pem", "gateway.ca_file 'none.pem' cannot be used"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line(gateway, https_hub, monkeypatch, login, ca_file, says):
    text = {"": "", "good": connection_string(https_hub.name)}
    text["device"] = connection_string(https_hub.name, device="gw-2")
    g = gateway(transport="https", login="unused")
    g.ca_file = g.ca_file if ca_file == "ok" else ca_file
    g.configure()
    config = load(g.config, {"GATEWAY_CONNECTION_STRING": text[login]})
    with pytest.raises(ConfigError, match=says) as raised:
        flow.run(config, Drain(), GatewayMetrics())
    assert "\n" not in str(raised.value) and KEY not in str(raised.value)
    (g.folder / "log").touch()


def test_messages_too_large_and_not_json_and_of_several_filters(gateway, https_hub):
    g = gateway(server=https_hub.name, transport="https", topics=["a/#", "b/#"], gateway="linger_seconds = 0.1")
    g.start()
    g.subscribed(2)
    odd = [("a/x", b"\xff\x00"), ("a/y", b""), ("b/z", b" {} "), ("a/ü", b"[1]"), ("a/big", b"y" * 300_000)]
    publish(g.port, [*odd, ("a/last", b"{}"), ("b/last", b"{}")])
    g.until(lambda: len(https_hub.messages()) >= 6, "not sent")
    expected = {(topic, payload.strip(b" ")) for topic, payload in odd[:-1]} | {("a/last", b"{}"), ("b/last", b"{}")}
    assert {(topic, payload.strip(b" ")) for topic, payload in https_hub.messages()} == expected
    g.drain()
    assert "kept aside" in g.log() and '"reason": "too_large"' in g.log()
