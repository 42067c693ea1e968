"""Tries the connection of the ``[gateway]`` table: reaches the hub and logs in as the gateway's device."""

import socket
import ssl
from pathlib import Path
from typing import Final

from voltmill.connectors.extras import MissingExtra
from voltmill.connectors.gateway_hub import Hub, HubError, open_hub
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.gateway_store import in_use
from voltmill.connectors.probe import Finding
from voltmill.connectors.probe_network import explain

_SECONDS: Final = 8.0
_PORTS: Final = {"mqtt": 8883, "mqtt_ws": 443}


def probe(settings: GatewaySettings) -> Finding:
    """Whether the hub lets this device in; within ten seconds, sends and changes nothing, raises nothing.

    Over MQTT a second login ends the first. So where a gateway is running on the store, the hub is only reached.
    """
    if not settings.connection_string:
        return Finding("IoT Hub", "[gateway] connection_string is empty", "put in that of the gateway's device")
    try:
        hub = open_hub(settings)
    except (MissingExtra, ValueError) as error:
        return Finding(settings.place, str(error))
    try:
        return Finding(settings.place, facts=_tried(settings, hub))
    except HubError as error:
        return Finding(settings.place, error.problem, error.mend)
    except OSError as error:
        return Finding(settings.place, *explain(error, seconds=_SECONDS))
    finally:
        hub.close()


def _tried(settings: GatewaySettings, hub: Hub) -> str:
    """What is worth knowing of a hub that could be tried."""
    if settings.transport == "https" or not in_use(Path(settings.store)):
        hub.check(_SECONDS)
        return f"logged in over {settings.transport}"
    name = settings.identity.server
    context = ssl.create_default_context(cafile=settings.ca_file or None)
    with (
        socket.create_connection((name, _PORTS[settings.transport]), _SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=name),
    ):
        return "reached; a gateway is running, whose login would end with another one"
