"""Requests to a model behind HTTP: over connections that are kept, and again where a failure may pass."""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from urllib3.exceptions import HTTPError

from voltmill.connectors.endpoint_errors import EndpointError, refused, unanswered
from voltmill.connectors.endpoint_settings import EndpointSettings
from voltmill.connectors.endpoint_token import EndpointToken
from voltmill.connectors.http_pool import HttpPool

log = logging.getLogger("voltmill.endpoint")

FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 5.0


class EndpointClient:
    """Sends bodies to one endpoint, from any thread.

    Args:
        settings: where, and how patiently.
        observe: called for each request with its outcome (``ok``, or as in `EndpointError`) and its seconds.
        on_retry: called with the outcome of a request that is sent again.

    Raises:
        EndpointError: ``ca_file`` cannot be used, or azure-identity is missing.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        observe: Callable[[str, float], None] = lambda outcome, seconds: None,
        on_retry: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._settings, self._observe, self._on_retry = settings, observe, on_retry
        self._closed = threading.Event()
        self._pool = _open(settings)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._token = EndpointToken(settings) if settings.credential else None
        if settings.key and settings.url.startswith("http:"):
            log.warning("the key of %s goes over the network as it is: use https", settings.place)
        if settings.deployment:
            self._headers["azureml-model-deployment"] = settings.deployment

    def post(self, body: bytes, *, most_bytes: int, deadline: float, attempts: int) -> bytes:
        """The answer to a request.

        Args:
            body: JSON.
            most_bytes: of an answer; a longer one is none of a model.
            deadline: on the monotonic clock; nothing is sent after it.
            attempts: how often it is sent at most.

        Raises:
            EndpointError: the last failure.
        """
        for sent in itertools.count(1):
            began = time.monotonic()
            try:
                answer = self._send(body, most_bytes, min(began + self._settings.timeout_seconds, deadline))
            except EndpointError as error:
                self._observe(error.outcome, time.monotonic() - began)
                wait = max(_back_off(sent), error.retry_after)
                if sent >= min(attempts, error.sends) or time.monotonic() + wait >= deadline:
                    raise
                self._on_retry(error.outcome)
                if self._closed.wait(wait):
                    raise
            else:
                self._observe("ok", time.monotonic() - began)
                return answer
        raise AssertionError("count() has no end")

    def close(self) -> None:
        """End the waits between requests, and close the connections."""
        self._closed.set()
        self._pool.close()

    def _send(self, body: bytes, most_bytes: int, until: float) -> bytes:
        """One request."""
        key = self._token.text() if self._token else self._settings.key
        headers = {**self._headers, "Authorization": f"Bearer {key}"} if key else self._headers
        try:
            answer = self._pool.request("POST", body, headers, most_bytes=most_bytes, until=until)
        except (HTTPError, OSError) as error:
            raise unanswered(self._settings, error, key) from error
        if not answer.good:
            raise refused(self._settings, answer, key)
        if len(answer.body) > most_bytes:
            text = "the answer is longer than that of a model: check url"
            raise EndpointError(self._settings, text, outcome="answer", away=False)
        return answer.body


def _open(settings: EndpointSettings) -> HttpPool:
    """As many connections as requests may be under way, each kept for the next one."""
    try:
        return HttpPool(settings.url, ca_file=settings.ca_file, connections=settings.concurrency)
    except OSError as error:
        text = f"ca_file {settings.ca_file!r} cannot be used: {error}: name a PEM file"
        raise EndpointError(settings, text, outcome="connection") from error


def _back_off(sent: int) -> float:
    """The wait before the next request, s; random, so that several workers do not come at once."""
    longest = min(FIRST_WAIT_SECONDS * 2.0 ** (sent - 1), LONGEST_WAIT_SECONDS)
    return longest * random.uniform(0.5, 1.0)
