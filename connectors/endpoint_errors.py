"""What can go wrong with a model behind HTTP: in one line, whether to ask again, and what mends it.

What a status means is Azure ML's: 424 wraps an error of the model itself, 408 is a time-out, 429 an overload
(https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints).
"""

from collections.abc import Mapping
from typing import Final

from urllib3 import exceptions as broken

from voltmill.connectors.endpoint_settings import EndpointSettings
from voltmill.connectors.http_pool import Answer, one_line, retry_after

#: As often as the settings allow.
ANY_NUMBER: Final = 1_000

#: Statuses that pass by themselves; any other from 500 up does as well.
_PASSING: Final = frozenset({408, 425, 429})
#: Statuses of an endpoint that is well, and may be asked about other rows.
_ABOUT_THE_ROWS: Final = frozenset({400, 413, 422})
_MEND: Final = {
    400: "it takes another input: compare its scoring script with the contract",
    401: "set key to a key or token of the endpoint",
    403: "set key to one that may score, or give the identity the role AzureML Data Scientist",
    404: "check url and deployment: the path, and whether the deployment is there and takes traffic",
    408: "the model took too long: lower batch_rows, or raise request_timeout_ms of the deployment",
    413: "one row alone is too large for it",
    424: "the model itself failed: see the log of the deployment",
    429: "more requests than the deployment takes in: lower concurrency, or give it more instances",
}


class EndpointError(ValueError):
    """A model behind HTTP gave no answer that can be used; one line: the place, what is wrong, the mend.

    It never holds a secret.

    Args:
        settings: which endpoint.
        text: the rest of the line.
        outcome: in one word, for metrics: the status, or timeout, connection, answer, held_back.
        sends: how often the request may be sent, in all, before this failure is final.
        away: whether other requests would fail as well: then the endpoint is left alone for a while.
        retry_after: how long it asked to be left alone, s.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        text: str,
        *,
        outcome: str,
        sends: int = 1,
        away: bool = True,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(f"endpoint {settings.place}: {text}")
        self.outcome, self.sends, self.away, self.retry_after = outcome, sends, away, retry_after


def unanswered(settings: EndpointSettings, error: Exception, *secrets: str) -> EndpointError:
    """The error for a request without an answer, or with half of one."""
    reason = one_line(str(error), *secrets) or type(error).__name__
    if isinstance(error, broken.NewConnectionError):
        return EndpointError(settings, f"no connection: {reason}", outcome="connection", sends=ANY_NUMBER)
    if isinstance(error, broken.TimeoutError | TimeoutError):
        return EndpointError(settings, "no answer in time: is it up?", outcome="timeout", sends=ANY_NUMBER)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        text = f"its certificate is not trusted: name its authority in ca_file ({reason})"
        return EndpointError(settings, text, outcome="connection")
    return EndpointError(settings, f"the connection was lost: {reason}", outcome="connection", sends=ANY_NUMBER)


def refused(settings: EndpointSettings, answer: Answer, *secrets: str) -> EndpointError:
    """The error for an answer with a status that is none of success."""
    status, headers = answer.status, answer.headers
    cause, of_model = _cause(status, headers)
    passes = cause in _PASSING or (cause >= 500 and not of_model)
    away = passes or not (of_model or cause in _ABOUT_THE_ROWS)
    said = one_line(answer.body.decode("utf-8", "replace"), *secrets)
    mend = _MEND[424] if of_model else _MEND.get(cause, "")
    return EndpointError(
        settings,
        f"answers {status}{f' ({said})' if said else ''}{f': {mend}' if mend else ''}",
        outcome=str(status),
        # A model that fails may do better in another instance; one that says what is wrong with the rows will not.
        sends=ANY_NUMBER if passes else 2 if of_model and cause >= 424 else 1,
        away=away,
        retry_after=retry_after(headers.get("retry-after", "")),
    )


def _cause(status: int, headers: Mapping[str, str]) -> tuple[int, bool]:
    """The status that the container of the model gave, and whether the model itself is what failed."""
    if status == 424:
        inner = headers.get("ms-azureml-model-error-statuscode", "")
        cause = int(inner) if inner.isdecimal() else 424
        # Of a container that is overloaded or not up, not of the model in it.
        return cause, cause not in _PASSING and cause not in (502, 503, 504)
    return status, headers.get("x-ms-run-function-failed", "").lower() == "true"
