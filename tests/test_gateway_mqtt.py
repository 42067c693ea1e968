"""The gateway's MQTT transport: Microsoft's client against Mosquitto over TLS with our own authority, on 8883.

Its WebSocket is fixed to port 443: that is tested where this user may open it.
"""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from gateway_hubs import KEY, MqttHubServer, connection_string
from servers import Certificates, make_certificates
from websocket_bridge import PATH, WebSocketBridge

from voltmill.connectors import gateway_mqtt
from voltmill.connectors.gateway_hub import HubError, Outgoing, open_hub
from voltmill.connectors.gateway_mqtt import MqttHub
from voltmill.connectors.gateway_probe import probe
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.gateway_store import GatewayStore

pytestmark = [
    # The client asks for TLS 1.2 by a name that Python no longer likes,
    pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2 is deprecated:DeprecationWarning"),
    # and leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning"),
]

PACK = Outgoing(b'[{"topic":"a","payload":1}]', "s-1-1", late=True)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a test leaves to the garbage collector is collected by its end, not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MqttHubServer]:
    server = MqttHubServer(tmp_path_factory.mktemp("hub"), certificates)
    yield server
    server.end()


@pytest.fixture
def settings(certificates: Certificates, tmp_path: Path) -> GatewaySettings:
    return GatewaySettings(
        connection_string=connection_string(),
        ca_file=certificates.ca_file,
        timeout_seconds=5.0,
        keepalive_seconds=5,
        store=str(tmp_path / "gateway.db"),
    )


@pytest.fixture
def hub(settings: GatewaySettings) -> Iterator[MqttHub]:
    hub = open_hub(settings)
    assert isinstance(hub, MqttHub)
    yield hub
    hub.close()


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_arrives(hub, server):
    hub.check(5)
    before = len(server.packs)
    hub.send(PACK)
    hub.send(Outgoing(b"x" * 260_000, "s-2-9", late=False))
    until(lambda: len(server.packs) == before + 2)
    (topic, body), (_, large) = server.packs[-2:]
    assert body == PACK.body and len(large) == 260_000 and topic.startswith("devices/gw-1/messages/events/")
    assert server.properties()[-2] == {
        "$.mid": "s-1-1",
        "$.ct": "application/json",
        "$.ce": "utf-8",
        "schema": "voltmill-pack-1",
        "late": "true",
    }
    assert "late" not in server.properties()[-1]


def test_a_hub_that_falls_silent_is_given_up_in_time_and_found_again(hub, server, settings):
    hub.check(5)
    hub._settings = msgspec.structs.replace(settings, timeout_seconds=1.0)
    server.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(HubError, match="sending took longer than 1 s; a slow network needs more") as raised:
            hub.send(PACK)
        assert raised.value.kind == "timeout" and raised.value.sending and time.monotonic() - began < 4
        with pytest.raises(HubError) as raised:  # it accepts the connection, and says no more
            hub.send(PACK)
        assert raised.value.kind == "timeout" and time.monotonic() - began < 8
    finally:
        server.process.send_signal(signal.SIGCONT)
    until(lambda: arrives(hub))


def arrives(hub: MqttHub) -> bool:
    try:
        hub.send(PACK)
    except HubError:
        return False
    return True


def test_a_hub_that_goes_away_and_comes_back(hub, server):
    hub.check(5)
    hub.send(PACK)
    server.kill()
    try:
        with pytest.raises(HubError, match="closed the connection") as raised:
            hub.send(PACK)
        assert raised.value.kind == "unreachable"
        with pytest.raises(HubError, match="nothing listens on that port") as raised:
            hub.send(PACK)
        assert raised.value.kind == "unreachable" and not raised.value.mend.startswith("name a certificate")
    finally:
        server.start()
    until(lambda: arrives(hub))


def test_many_failures_leave_no_threads_and_no_files(settings, server):
    hub = MqttHub(msgspec.structs.replace(settings, connection_string=connection_string("no-such-hub.invalid")))
    used = []
    for k in range(12):
        with pytest.raises(HubError, match="no host of that name"):
            hub.check(5)
        if k > 1:
            used.append((threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))))
    hub.close()
    threads, files = (min(counts) for counts in zip(*used[-4:], strict=True))  # a thread may just be ending
    assert threads <= used[0][0] + 1 and files <= used[0][1] + 2, used


def test_the_token_is_renewed_by_another_client_between_two_messages(hub, server, monkeypatch):
    hub.check(5)
    first, now = hub._client, time.monotonic()
    monkeypatch.setattr(gateway_mqtt.time, "monotonic", lambda: now + 3419)
    hub.send(PACK)
    assert hub._client is first
    monkeypatch.setattr(gateway_mqtt.time, "monotonic", lambda: now + 3421)
    hub.send(PACK)
    assert hub._client is not first


def test_a_certificate_of_an_unknown_authority_is_refused(settings, server, tmp_path):
    hub = MqttHub(msgspec.structs.replace(settings, ca_file=make_certificates(tmp_path).ca_file))
    with pytest.raises(HubError, match="authority that is not trusted; name the authority in ca_file") as raised:
        hub.check(5)
    assert raised.value.kind == "refused"
    hub.close()


def test_the_client_is_made_to_leave_reconnecting_and_time_outs_to_us(settings):
    ws = MqttHub(msgspec.structs.replace(settings, transport="mqtt_ws", sas_ttl_seconds=7200.0))
    assert ws.arguments.pop("server_verification_cert").startswith("-----BEGIN CERTIFICATE")
    expected = {"websockets": True, "sastoken_ttl": 7200, "keep_alive": 5, "auto_connect": False}
    expected |= {"connection_retry": False, "ensure_desired_properties": False}
    assert {k: v for k, v in ws.arguments.items() if k != "server_verification_cert"} == expected
    assert MqttHub(settings).arguments["websockets"] is False
    made = ws._sdk.IoTHubDeviceClient.create_from_connection_string(connection_string(), **ws.arguments)
    transport = made._mqtt_pipeline._pipeline
    while transport.next is not None:
        transport = transport.next
    assert transport.transport._mqtt_client._transport == "websockets"
    made.shutdown()


def test_what_arrives_in_a_websocket(settings, certificates, server):
    try:
        bridge = WebSocketBridge(server.inner, certificates)
    except OSError as error:
        pytest.skip(f"port 443, which the client has fixed, cannot be opened here: {error}")
    hub = MqttHub(msgspec.structs.replace(settings, transport="mqtt_ws"))
    try:
        before = len(server.packs)
        hub.check(5)
        hub.send(PACK)
        hub.send(Outgoing(b"x" * 255_000, "s-2-9", late=False))
        until(lambda: len(server.packs) == before + 2)
        assert server.packs[-2][1] == PACK.body and len(server.packs[-1][1]) == 255_000
        assert (
            bridge.requests[0].startswith(f"GET {PATH} HTTP/1.1")
            and "Sec-Websocket-Protocol: mqtt" in bridge.requests[0]
        )
    finally:
        hub.close()
        bridge.end()


def test_a_ca_file_that_is_none_is_one_line(settings, tmp_path):
    for content in (None, "no certificate"):
        if content:
            (tmp_path / "ca.pem").write_text(content)
        with pytest.raises(ValueError, match="gateway.ca_file .*ca.pem.*name a PEM file"):
            open_hub(msgspec.structs.replace(settings, ca_file=str(tmp_path / "ca.pem")))


def test_the_probe_ends_no_login_of_a_gateway_that_runs(settings, server, hub):
    assert str(probe(settings)) == "IoT Hub localhost, device gw-1: works, logged in over mqtt"
    store = GatewayStore(Path(settings.store), max_bytes=1 << 20, max_entry_bytes=100)
    hub.check(5)
    took_over = server.log.count("already connected, closing old connection")
    assert "reached; a gateway is running" in str(probe(settings))
    hub.send(PACK)
    assert server.log.count("already connected, closing old connection") == took_over
    store.close()
    wrong = probe(msgspec.structs.replace(settings, connection_string=connection_string("no-such-hub.invalid")))
    assert "no host of that name" in wrong.problem and KEY not in str(wrong)


def test_a_login_that_is_refused_is_one_clear_line(settings, certificates, server, tmp_path):
    """Mosquitto admits nobody here, with the code by which IoT Hub refuses a wrong key or an unknown device."""
    server.stop()
    strict = MqttHubServer(tmp_path, certificates, admits=False)
    try:
        finding = probe(settings)
        assert finding.problem == "it refuses the login"
        assert finding.mend.startswith("mend HostName, DeviceId and SharedAccessKey, enable the device")
    finally:
        strict.end()
        server.start()
