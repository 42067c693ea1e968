"""The client of the hub: how it is made, what it is asked, and what its errors mean.

The client's own retries are turned off: they would try with the place where reading began, and without a limit of
time that is ours. ``iothub_reader`` tries again, from the last event that came.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final, Literal

from voltmill.connectors.extras import need
from voltmill.connectors.iothub_settings import IotHubSettings
from voltmill.connectors.time_limit import TimeLimit

#: AMQP over TLS; the one port of the endpoint besides 443, which is for WebSockets.
PORT: Final = 5671
_WHAT: Final = "reading IoT Hub"
_LONGEST: Final = 300
#: After this time without a sign of life the client takes the connection for lost, s. Without it a connection that a
#: network forgets in silence would be waited on for ever.
IDLE_SECONDS: Final = 60

# What comes to pass is told by us, once and with its mend; without a handler the library's lines would go to stderr.
logging.getLogger("azure").addHandler(logging.NullHandler())

Kind = Literal["stolen", "unauthorized", "not found", "away"]


@dataclass(frozen=True)
class Trouble:
    """What an error of the client means.

    Attributes:
        kind: away passes by itself; unauthorized and not found may, where it worked before; stolen never does.
        problem: what is wrong, on one line, no secret in it.
        mend: what to do about it; empty: to wait.
    """

    kind: Kind
    problem: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.problem}; {self.mend}" if self.mend else self.problem


class HubError(RuntimeError):
    """The hub cannot be read, and that does not pass by itself; one line with the mend."""


@dataclass(frozen=True)
class PartitionState:
    """What the hub says of a partition: sequence numbers of its first and last event; no event: last is first - 1."""

    first: int
    last: int


def port(settings: IotHubSettings) -> int:
    """The TCP port of the endpoint."""
    _, _, number = settings.address.partition(":")
    return int(number) if number else PORT


def connect(settings: IotHubSettings) -> Any:
    """A client, which connects when it is used.

    Raises:
        MissingExtra: azure-eventhub, or azure-identity where it is needed, is not installed.
    """
    kind = need("azure.eventhub", _WHAT).EventHubConsumerClient
    options = {
        "consumer_group": settings.consumer_group,
        "auth_timeout": settings.timeout_seconds,
        "retry_total": 0,
        "retry_backoff_factor": 0.01,  # it waits even after the last attempt
        "idle_timeout": IDLE_SECONDS,
        "user_agent": "voltmill",
    }
    if settings.connection_string:
        return kind.from_connection_string(settings.connection_string, **options)
    credential = need("azure.identity", _WHAT).DefaultAzureCredential()
    return kind(settings.namespace, settings.hub, credential=credential, **options)


def partition_ids(settings: IotHubSettings) -> list[str]:
    """The hub's partitions; whatever the client raises."""
    with connect(settings) as client, TimeLimit(port(settings)).opening(settings.timeout_seconds):
        return [str(number) for number in client.get_partition_ids()]


def partition_state(client: Any, settings: IotHubSettings, partition: str) -> PartitionState:
    """What the hub holds of a partition now; whatever the client raises."""
    with TimeLimit(port(settings)).opening(settings.timeout_seconds):
        found = client.get_partition_properties(partition)
    last = int(found["last_enqueued_sequence_number"])
    return PartitionState(last + 1 if found["is_empty"] else int(found["beginning_sequence_number"]), last)


def trouble(error: BaseException, settings: IotHubSettings) -> Trouble:
    """What an error of the client means.

    Example:
        >>> settings = IotHubSettings(namespace="ns.example", hub="bms")
        >>> print(trouble(ConnectionRefusedError("connection refused"), settings).problem)
        ConnectionRefusedError: connection refused
    """
    text = _line(error, settings)
    condition = _condition(error)
    if "link:stolen" in condition or "higher epoch" in text:
        what = f"another process reads consumer group {settings.consumer_group}, and was started after this one"
        return Trouble("stolen", what, "run one flow on it, or give each its own consumer_group")
    if "not-found" in condition or "could not be found" in text:
        return Trouble("not found", *_not_found(text, settings))
    if "Listen" in text or "Management authentication failed" in text:  # the login has passed by then
        return Trouble("unauthorized", *_no_right(settings))
    login = ("AuthenticationError", "AuthenticationException", "TokenAuthFailure")
    if type(error).__name__ in login or "unauthorized-access" in condition or "Credential" in text:
        return Trouble("unauthorized", *_no_login(text, settings))
    return Trouble("away", text)


def _condition(error: BaseException) -> str:
    """What AMQP calls the error; the client has three ways to say it."""
    found = getattr(error, "error", None) or getattr(error, "condition", None) or ""
    found = getattr(found, "value", found)
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def _not_found(text: str, settings: IotHubSettings) -> tuple[str, str]:
    if settings.consumer_group in text.replace(settings.name, ""):
        command = f"az iot hub consumer-group create --hub-name HUB --name '{settings.consumer_group}'"
        return f"there is no consumer group {settings.consumer_group}", command
    return f"there is no Event Hub-compatible name {settings.name}", "take the endpoint anew: a failover changes it"


def _no_right(settings: IotHubSettings) -> tuple[str, str]:
    if settings.connection_string:
        return "the policy may not read (no Listen)", "take a policy with ServiceConnect, such as service"
    role = "assign the role Azure Event Hubs Data Receiver on the endpoint to this identity"
    return "the identity logs in, but may not read (no Listen)", f"{role}, or use a connection_string"


def _no_login(text: str, settings: IotHubSettings) -> tuple[str, str]:
    if settings.connection_string:
        return "the key is refused", "take the connection string anew: its key was changed, or it is another hub's"
    return f"no identity logs in: {text}", "give the process a managed or workload identity, or run `az login`"


def _line(error: BaseException, settings: IotHubSettings) -> str:
    """An error of the client on one line, without the key."""
    text = " ".join(str(error).split())
    if settings.secret:
        text = text.replace(settings.secret, "***")
    return f"{type(error).__name__}: {text[:_LONGEST]}"
