"""Who may read the hub: settings, wrong keys, roles, groups, a hub that is away, and what ``probe`` says of each."""

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from azure.core.credentials import AccessToken
from azure.eventhub import EventHubConsumerClient
from hub_server import KEY, NAME, HubServer, connection_string
from iothub_parts import SOCKETS_LEFT, collected, numbers, part_of, payloads, read, settings_for, until

from voltmill.connectors import extras
from voltmill.connectors.drain import Drain
from voltmill.connectors.iothub import HubError, IotHubSettings, IotHubSource, probe
from voltmill.connectors.outage import Patience
from voltmill.flows.broker import free_port
from voltmill.flows.config import ConfigError, parse
from voltmill.flows.live import source
from voltmill.flows.metrics import Metrics

__all__ = ["collected"]

pytestmark = SOCKETS_LEFT
OTHER_KEY = "b3RoZXIta2V5LW9mLW5vYm9keS1hdC1hbGw="


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer(1, tokens={"may-read": True, "may-not": False}) as server:
        yield server


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``DefaultAzureCredential`` gives its ``token``; the client does without TLS."""
    given = SimpleNamespace(token="may-read")

    class Credential:
        def get_token(self, *scopes: str, **options: Any) -> AccessToken:
            assert scopes == ("https://eventhubs.azure.net//.default",)
            return AccessToken(given.token, int(time.time()) + 3600)

    class Client(EventHubConsumerClient):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, use_tls=False, **options)

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Credential)
    monkeypatch.setattr("azure.eventhub.EventHubConsumerClient", Client)
    return given


def with_identity(hub: HubServer, **changed: Any) -> IotHubSettings:
    with_key = settings_for(hub, **changed)
    return msgspec.structs.replace(with_key, connection_string="", namespace=f"127.0.0.1:{hub.port}", hub=NAME)


def wrong_key(hub: HubServer) -> IotHubSettings:
    return settings_for(hub, connection_string=connection_string(hub.port, key=OTHER_KEY))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"connection_string": "HostName=bms.azure-devices.net;SharedAccessKey=s3cret"},
            "the hub's own.*Built-in endp",
        ),
        ({"connection_string": "Endpoint=sb://x/;SharedAccessKeyName=a;SharedAccessKey=s3cret"}, "no EntityPath"),
        ({"connection_string": "Endpoint=sb://x/;EntityPath=b;SharedAccessKey=s3cret"}, "SharedAccessKeyName"),
        ({"connection_string": "s3cret"}, "no Endpoint=sb://"),
        ({"namespace": "x.servicebus.windows.net"}, "go together"),
        ({"namespace": "sb://x/", "hub": "b"}, "host name only"),
        ({"start": "yesterday"}, "earliest"),
        ({"start": "2026-05-01T00:00:00"}, "no time zone"),
        ({"consumer_group": ""}, "consumer_group"),
        ({"prefetch": 0}, "prefetch"),
        ({"reconnect_min_seconds": 20.0}, "reconnect_min_seconds"),
    ],
)
def test_wrong_settings_are_one_line(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse({"iothub": wrong}, "voltmill.toml", {})
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_key_is_in_no_repr(hub: HubServer) -> None:
    assert KEY not in repr(settings_for(hub)) and KEY not in settings_for(hub).place


def test_a_flow_on_no_hub_says_how_to_name_one() -> None:
    config = parse({"run": {"source": "iothub"}}, "voltmill.toml", {})
    with pytest.raises(ConfigError, match="set connection_string in .iothub., or namespace and hub"):
        source(config, Drain(), Metrics())


def test_a_wrong_key_ends_the_start_with_one_line(hub: HubServer) -> None:
    with pytest.raises(HubError, match="the key is refused; take the connection string anew") as caught:
        IotHubSource(wrong_key(hub)).list_parts()
    assert OTHER_KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert str(probe(wrong_key(hub))).endswith(": " + str(caught.value).split(": ", 1)[1])


def test_a_group_that_is_not_there_ends_the_flow_with_one_line(hub: HubServer) -> None:
    settings = settings_for(hub, consumer_group="soc")
    part = part_of(settings)
    with pytest.raises(HubError, match="there is no consumer group soc; az iot hub consumer-group create"):
        until(lambda: bool(part.next_batch()))
    part.close()
    assert "there is no consumer group soc" in str(probe(settings))


def test_a_hub_of_another_name_is_not_there(hub: HubServer) -> None:
    settings = settings_for(hub, connection_string=connection_string(hub.port, name="gone"))
    with pytest.raises(HubError, match="no Event Hub-compatible name gone; take the endpoint anew"):
        IotHubSource(settings).list_parts()


def test_what_works_is_found_working(hub: HubServer) -> None:
    part = part_of(settings_for(hub))
    until(lambda: part.connected)
    finding = probe(settings_for(hub))
    assert finding.works and finding.facts == "1 partitions, consumer group $Default"
    assert part.next_batch() == [] and part.connected  # it pushed nobody out
    part.close()


def test_an_identity_reads_the_hub(hub: HubServer, identity: SimpleNamespace) -> None:
    assert IotHubSource(with_identity(hub)).list_parts() == ["0"]
    assert probe(with_identity(hub)).works


def test_an_identity_without_the_role_is_told_which(hub: HubServer, identity: SimpleNamespace) -> None:
    identity.token = "may-not"
    with pytest.raises(HubError, match="may not read.*assign the role Azure Event Hubs Data Receiver"):
        IotHubSource(with_identity(hub)).list_parts()
    assert "Data Receiver" in probe(with_identity(hub)).mend


def test_a_closed_port_is_named() -> None:
    finding = probe(IotHubSettings(connection_string=connection_string(free_port())))
    assert "refused" in finding.problem and "outgoing TCP" in finding.mend


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        finding = probe(IotHubSettings(connection_string=connection_string(silent.getsockname()[1])))
        assert not finding.works and time.monotonic() - started < 10


def test_a_missing_package_is_one_line(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    assert "reading IoT Hub needs azure.eventhub: pip install 'voltmill[azure]'" in str(probe(settings_for(hub)))
    with pytest.raises(extras.MissingExtra):
        IotHubSource(settings_for(hub)).list_parts()


def test_a_hub_that_is_away_is_waited_for_at_the_start() -> None:
    with HubServer(1) as server:
        server.leave()
        waiting: list[bool] = []
        patience = Patience("the hub", on_waiting=waiting.append)
        threading.Timer(0.5, server.come).start()
        assert IotHubSource(settings_for(server), patience=patience).list_parts() == ["0"]
        assert waiting == [True, False]


def test_a_hub_that_goes_away_is_waited_for_and_so_is_a_new_key(caplog: pytest.LogCaptureFixture) -> None:
    with HubServer(1) as server:
        part = part_of(settings_for(server))
        until(lambda: part.connected)
        server.leave()
        for number in numbers(10):
            server.append(number, partition=0)
        time.sleep(0.5)
        assert part.next_batch() == []
        server.allow(OTHER_KEY)
        server.come()
        until(lambda: "the key is refused" in caplog.text)
        server.allow(KEY)
        assert payloads(read(part, 10)) == numbers(10)
        part.close()
    assert KEY not in caplog.text
