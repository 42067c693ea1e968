"""Tries the connection of the ``[iothub]`` table: reaches the port, logs in, asks for a place in the consumer group.

It reads nothing: the link that it opens begins after the newest event, has no owner level, so it pushes nobody out,
and is closed at once.
"""

import socket
import time
from typing import Any, Final

import msgspec

from voltmill.connectors.extras import MissingExtra
from voltmill.connectors.iothub_client import Trouble, connect, partition_ids, port, trouble
from voltmill.connectors.iothub_settings import IotHubSettings
from voltmill.connectors.probe import Finding
from voltmill.connectors.probe_network import explain
from voltmill.connectors.time_limit import TimeLimit

_SECONDS: Final = 3.0  # for each of the steps


def probe(settings: IotHubSettings) -> Finding:
    """Whether we may read the hub, in this consumer group; within ten seconds, raises nothing.

    Example:
        >>> print(probe(IotHubSettings()))
        IoT Hub: nothing says which; set iothub.connection_string, or iothub.namespace and iothub.hub
    """
    place = settings.place
    if not settings.configured:
        mend = "set iothub.connection_string, or iothub.namespace and iothub.hub"
        return Finding(place, "nothing says which", mend)
    host = settings.address.partition(":")[0]
    try:
        socket.create_connection((host, port(settings)), _SECONDS).close()
    except OSError as error:
        problem, mend = explain(error, seconds=_SECONDS)
        return Finding(place, problem, f"{mend} (outgoing TCP {port(settings)})")
    hurried = msgspec.structs.replace(settings, timeout_seconds=_SECONDS)
    try:
        found = _try(hurried)
    except MissingExtra as error:
        return Finding(place, str(error))
    return Finding(place, found.problem, found.mend) if isinstance(found, Trouble) else Finding(place, facts=found)


def _try(settings: IotHubSettings) -> Trouble | str:
    """What is wrong, or what is worth knowing."""
    try:
        partitions = partition_ids(settings)
        with connect(settings) as client, TimeLimit(port(settings)).opening(settings.timeout_seconds):
            _attach(client, settings, partitions[0])
    except MissingExtra:
        raise
    except Exception as error:
        found = trouble(error, settings)
        if found.kind != "stolen":  # that a flow reads already shows that one may
            return found
    return f"{len(partitions)} partitions, consumer group {settings.consumer_group}"


def _attach(client: Any, settings: IotHubSettings, partition: str) -> None:
    """Open a link and close it; whatever the client raises."""
    consumer = client._create_consumer(settings.consumer_group, partition, "@latest", lambda events: None, prefetch=1)
    until = time.monotonic() + settings.timeout_seconds
    try:
        while not consumer.handler_ready:
            if time.monotonic() > until:
                raise TimeoutError(f"no answer within {settings.timeout_seconds:g} s")
            consumer.receive(batch=True)
        for _ in range(2):  # a refusal comes after the link stands: one call reads it, the next raises it
            consumer.receive(batch=True)
    finally:
        consumer.close()
