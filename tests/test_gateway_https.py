"""The gateway's HTTPS transport against a real HTTPS server that checks the tokens, refuses, hangs and cuts."""

import time
from collections.abc import Iterator

import msgspec
import pytest
from gateway_hubs import KEY, HttpsHubServer, answers, connection_string, hang, hang_up
from servers import Certificates, make_certificates

from voltmill.connectors.gateway_https import HttpsHub
from voltmill.connectors.gateway_hub import HubError, Outgoing, open_hub
from voltmill.connectors.gateway_probe import probe
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.flows.broker import free_port

PACK = Outgoing(b'[{"topic":"a","payload":1}]', "s-1-1", late=False)


@pytest.fixture
def server(certificates: Certificates) -> Iterator[HttpsHubServer]:
    server = HttpsHubServer(certificates)
    yield server
    server.stop()


@pytest.fixture
def settings(certificates: Certificates, server: HttpsHubServer) -> GatewaySettings:
    login = connection_string(server.name)
    return GatewaySettings(
        connection_string=login, transport="https", ca_file=certificates.ca_file, timeout_seconds=1.0
    )


@pytest.fixture
def hub(settings: GatewaySettings) -> Iterator[HttpsHub]:
    hub = open_hub(settings)
    assert isinstance(hub, HttpsHub)
    yield hub
    hub.close()


def login(settings: GatewaySettings, text: str) -> GatewaySettings:
    return msgspec.structs.replace(settings, connection_string=text)


def test_what_arrives(hub, server):
    hub.check(5)
    hub.send(PACK)
    hub.send(Outgoing(b"[]", "s-2-9", late=True))
    (first, body), (second, _) = server.packs
    assert body == PACK.body and first["iothub-messageid"] == "s-1-1" and second["iothub-messageid"] == "s-2-9"
    assert first["iothub-contenttype"] == "application/json" and first["iothub-contentencoding"] == "utf-8"
    assert first["iothub-app-schema"] == "voltmill-pack-1" and "iothub-app-late" not in first
    assert second["iothub-app-late"] == "true"
    assert len(server.peers) == 2, "one connection for the check, one for all messages"


def test_the_connection_is_made_anew_when_the_server_closes_it(hub, server):
    hub.send(PACK)
    server.script = [hang_up]
    with pytest.raises(HubError):
        hub.send(PACK)
    hub.send(PACK)
    assert len(server.packs) == 2


def test_the_token_is_renewed_before_it_expires(hub, server, settings, monkeypatch):
    now = time.time()
    for seconds in (0, 100, 3419, 3421, 3500, -5000, -4999):
        monkeypatch.setattr("voltmill.connectors.gateway_https.time.time", lambda at=now + seconds: at)
        hub.send(PACK)
    monkeypatch.undo()
    first, second, third, fourth, fifth, sixth, seventh = server.tokens
    assert first == second == third != fourth == fifth, "3,600 s less three minutes"
    assert fifth != sixth == seventh, "the clock was set back: who knows what the old token says"
    assert settings.sas_ttl_seconds == 3600


@pytest.mark.parametrize(
    ("react", "kind", "says", "sending"),
    [
        (answers(401, "Unauthorized"), "refused", "it answers 401: .*mend the SharedAccessKey, or the clock", False),
        (answers(404, "ErrorCode:DeviceNotFound"), "refused", "404.*mend HostName and DeviceId", False),
        (answers(403, "ErrorCode:DeviceDisabled"), "refused", "403.*enable the device", False),
        (answers(403, "ErrorCode:IotHubQuotaExceeded;Total number of messages"), "throttled", "403.*more units", False),
        (answers(429, "ErrorCode:ThrottlingException", Retry_After="7"), "throttled", "429.*more units", False),
        (answers(400, "InvalidContentEncodingOrType"), "rejected", "400", True),
        (answers(413, "MessageTooLarge"), "rejected", "413", True),
        (answers(500, "x"), "server", "500", True),
        (answers(503, "x", Retry_After="3"), "server", "503", True),
        (answers(302, "", Location="https://elsewhere.example/"), "refused", "302.*is that an IoT hub", False),
        (hang, "timeout", "no answer within 1 s", True),
        (hang_up, "unreachable", "closed the connection", True),
    ],
)
def test_each_failure_has_its_kind(hub, server, react, kind, says, sending):
    server.script = [react]
    began = time.monotonic()
    with pytest.raises(HubError, match=says) as raised:
        hub.send(PACK)
    error = raised.value
    assert (error.kind, error.sending) == (kind, sending) and time.monotonic() - began < 4
    assert error.retry_after == {"429": 7.0, "503": 3.0}.get(error.problem[11:14], 0.0)
    assert "\n" not in str(error) and KEY not in str(error) and "sig=" not in str(error)
    hub.send(PACK)
    assert len(server.packs) == 1


def test_a_server_that_repeats_the_token_does_not_bring_it_into_a_log(hub, server):
    server.script = [lambda handler: handler.send(500, handler.headers["Authorization"].encode())]
    with pytest.raises(HubError) as raised:
        hub.send(PACK)
    assert "sig" not in str(raised.value).replace("Signature", "") or "***" in str(raised.value)
    assert server.tokens == [] and hub._token.partition("sig=")[2][:12] not in str(raised.value)


def test_a_closed_port_and_an_unknown_host(settings):
    for server, says in (
        (f"localhost:{free_port()}", "nothing listens"),
        ("no-such-hub.invalid", "no host of that name"),
    ):
        hub = HttpsHub(login(settings, connection_string(server)))
        with pytest.raises(HubError, match=says) as raised:
            hub.send(PACK)
        assert raised.value.kind == "unreachable"
        hub.close()


def test_a_certificate_of_an_unknown_authority_is_refused(settings, server, tmp_path):
    hub = HttpsHub(msgspec.structs.replace(settings, ca_file=make_certificates(tmp_path).ca_file))
    with pytest.raises(HubError, match="authority that is not trusted; name the authority in ca_file") as raised:
        hub.send(PACK)
    assert raised.value.kind == "refused" and not server.packs
    hub.close()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_is_none_is_one_line(settings, tmp_path, content):
    if content:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(ValueError, match="gateway.ca_file .*ca.pem.*name a PEM file"):
        open_hub(msgspec.structs.replace(settings, ca_file=str(tmp_path / "ca.pem")))


def test_the_probe_says_what_is_wrong_and_sends_nothing(settings, server):
    assert str(probe(settings)) == f"IoT Hub {server.name}, device gw-1: works, logged in over https"
    wrong = probe(login(settings, connection_string(server.name, key="b3RoZXI=")))
    assert not wrong.works and "401" in wrong.problem and "SharedAccessKey" in wrong.mend
    unknown = probe(login(settings, connection_string(server.name, device="gw-2")))
    assert "404" in unknown.problem and "DeviceId" in unknown.mend
    closed = probe(login(settings, connection_string(f"localhost:{free_port()}")))
    assert "nothing listens" in closed.problem and "firewall" in closed.mend
    assert "connection_string is empty" in str(probe(GatewaySettings()))
    assert not server.packs and not any("sig=" in str(f) or KEY in str(f) for f in (wrong, unknown, closed))
