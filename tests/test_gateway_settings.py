"""The [gateway] table and its connection string: what is wrong is one line, and shows no key."""

from pathlib import Path

import pytest
from azure.iot.device.common.auth.sastoken import RenewableSasToken
from azure.iot.device.common.auth.signing_mechanism import SymmetricKeySigningMechanism
from gateway_hubs import DEVICE, KEY, admits, connection_string

from voltmill.connectors.gateway_settings import MOST_MESSAGE_BYTES, GatewaySettings, Identity
from voltmill.connectors.iothub_sas import iothub_token
from voltmill.flows.config import ConfigError, load, parse

EXAMPLE = Path(__file__).parent.parent / "docs/examples/gateway.toml"


def test_a_connection_string_as_the_portal_shows_it():
    found = Identity.parse(connection_string("bms.azure-devices.net"))
    assert (found.host, found.device_id, found.key) == ("bms.azure-devices.net", DEVICE, KEY)
    assert found.server == "bms.azure-devices.net" and found.resource == "bms.azure-devices.net/devices/gw-1"
    edge = Identity.parse(
        f" hostname=bms.azure-devices.net;DeviceId=a b;GatewayHostName=edge;SharedAccessKey={KEY};".replace(" b", "")
    )
    assert edge.server == "edge" and edge.resource == "bms.azure-devices.net/devices/a"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("what", "lacks HostName"),
        ("HostName=h", "lacks DeviceId"),
        (f"DeviceId=d;SharedAccessKey={KEY}", "lacks HostName"),
        ("HostName=h;DeviceId=d", "lacks SharedAccessKey"),
        (f"HostName=h;SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}", "that of a policy of the hub"),
        (f"Endpoint=sb://h/;SharedAccessKeyName=x;SharedAccessKey={KEY};EntityPath=e", "from which one reads"),
        (f'"HostName=h;DeviceId=d;SharedAccessKey={KEY}"', "begins with a quotation mark"),
        (f"HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey={KEY}", "that of a module"),
        ("HostName=h;DeviceId=d;x509=true", "logs in with a key"),
        (f"HostName=h;DeviceId=d;SharedAccessSignature={KEY}", "which expires"),
        (f"HostName=h;DeviceId=d;SharedAccessKey={KEY};Extra={KEY}", "parts that are none of a device's .1."),
        (f"HostName=h;DeviceId=d;DeviceId=d;SharedAccessKey={KEY}", "names a part twice"),
        (f"HostName=https://h/;DeviceId=d;SharedAccessKey={KEY}", "HostName is no host name"),
        (f"HostName=h;DeviceId=d/e;SharedAccessKey={KEY}", "DeviceId has characters"),
        (f"HostName=h;DeviceId=d;SharedAccessKey={KEY[:-3]}", "SharedAccessKey is not base64"),
        (f"HostName=h:8883;DeviceId=d;SharedAccessKey={KEY}", "with transport https alone"),
    ],
)
def test_a_wrong_connection_string_is_one_line_without_the_key(text, says):
    with pytest.raises(ConfigError, match=says) as raised:
        parse({"gateway": {"connection_string": text}}, "site.toml", {})
    line = str(raised.value)
    assert line.startswith("site.toml: [gateway] connection_string") and "\n" not in line
    assert KEY not in line and KEY[:-3] not in line


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"store": ""}, "store is empty"),
        ({"max_message_bytes": MOST_MESSAGE_BYTES + 1}, "4096 to 261119"),
        ({"max_message_bytes": 4095}, "4096 to"),
        ({"max_store_bytes": 1}, "at least 1048576"),
        ({"linger_seconds": -1.0}, "at least 0"),
        ({"late_seconds": 0.0}, "late_seconds above 0"),
        ({"sas_ttl_seconds": 60.0}, "sas_ttl_seconds must be 300"),
        ({"timeout_seconds": 0.5}, "timeout_seconds must be 1"),
        ({"keepalive_seconds": 4}, "keepalive_seconds must be 5"),
        ({"retry_min_seconds": 9.0, "retry_max_seconds": 3.0}, "at most retry_max_seconds"),
        ({"transport": "amqp"}, "must be one of mqtt, mqtt_ws, https"),
    ],
)
def test_wrong_values_are_one_line(values, says):
    with pytest.raises(ConfigError, match=says):
        parse({"gateway": values}, "site.toml", {})


def test_neither_settings_nor_identity_show_the_key():
    settings = GatewaySettings(connection_string=connection_string())
    assert KEY not in repr(settings) + str(settings) + repr(settings.identity) + settings.place
    assert settings.place == "IoT Hub localhost, device gw-1"


def test_the_example_loads():
    names = {"MQTT_PASSWORD": "x", "GATEWAY_CONNECTION_STRING": connection_string("bms.azure-devices.net")}
    config = load(EXAMPLE, names)
    assert config.gateway.identity.host == "bms.azure-devices.net" and config.mqtt.tls is not None
    assert (
        config.gateway.max_store_bytes == 16 << 30
        and Path(config.run.state).parent == Path(config.gateway.store).parent
    )


def test_a_token_is_the_one_that_microsofts_client_makes(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.25)
    resource = "bms.azure-devices.net/devices/gw-1"
    theirs = str(RenewableSasToken(resource, SymmetricKeySigningMechanism(KEY), ttl=3600))
    ours = iothub_token(resource, KEY, 3600)
    assert ours == theirs
    assert admits(ours, resource, KEY) and not admits(ours, resource + "2", KEY)
    assert not admits(ours, resource, "b3RoZXI=")
    monkeypatch.setattr("time.time", lambda: 1_800_003_601.0)
    assert not admits(ours, resource, KEY), "it has expired"


def test_a_key_that_is_not_base64_is_not_shown():
    with pytest.raises(ValueError, match="is not base64") as raised:
        iothub_token("h/devices/d", "so secret!", 60)
    assert "secret!" not in str(raised.value)
