"""Tries the connection of a ``[model.endpoint]`` table: a request without rows, with the real client and key."""

import time
from collections.abc import Sequence

import numpy as np

from voltmill.connectors import endpoint_wire as wire
from voltmill.connectors.endpoint_client import EndpointClient
from voltmill.connectors.endpoint_errors import EndpointError
from voltmill.connectors.endpoint_settings import EndpointSettings
from voltmill.connectors.probe import Finding
from voltmill.connectors.probe_network import explain

_SECONDS = 8.0
_MOST_BYTES = 1 << 20


def probe(settings: EndpointSettings, columns: Sequence[str]) -> Finding:
    """Whether the endpoint takes our key and is there; within ten seconds, raises nothing.

    A scoring script need not bear a request without rows: one that fails on it is still one that was reached,
    past the key and the routing.

    Args:
        settings: where it is.
        columns: the inputs of its contract.
    """
    place = f"endpoint {settings.place}"
    facts = ["the key goes without TLS: use https"] if settings.key and settings.url.startswith("http:") else []
    try:
        client = EndpointClient(settings)
    except EndpointError as error:
        return Finding(place, _rest(error, place))
    seconds = min(_SECONDS, settings.timeout_seconds)
    body = wire.request(columns, np.empty((0, len(columns)), np.float32))
    try:
        client.post(body, most_bytes=_MOST_BYTES, deadline=time.monotonic() + seconds, attempts=1)
    except EndpointError as error:
        if error.__cause__ is not None:
            return Finding(place, *explain(error.__cause__, seconds=seconds))
        if error.away or error.outcome == "answer":
            return Finding(place, _rest(error, place))
        facts.append(f"reached and let in, though it answers {error.outcome} to a request without rows")
    finally:
        client.close()
    return Finding(place, facts=", ".join(facts))


def _rest(error: EndpointError, place: str) -> str:
    return str(error).removeprefix(f"{place}: ")
