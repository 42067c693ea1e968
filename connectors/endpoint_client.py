"""Requests to a model behind HTTP: over connections that are kept, and again where a failure may pass."""

import itertools
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from voltmill.connectors.endpoint_errors import EndpointError, refused, unanswered
from voltmill.connectors.endpoint_settings import EndpointSettings

log = logging.getLogger("voltmill.endpoint")

FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 5.0
_MOST_ERROR_BYTES: Final = 65_536
_CHUNK: Final = 65_536


class EndpointClient:
    """Sends bodies to one endpoint, from any thread.

    Args:
        settings: where, and how patiently.
        observe: called for each request with its outcome (``ok``, or as in `EndpointError`) and its seconds.
        on_retry: called with the outcome of a request that is sent again.

    Raises:
        EndpointError: ``ca_file`` cannot be used.
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
        self._pool = _pool(settings)
        self._path = urlsplit(settings.url).path or "/"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if settings.key:
            self._headers["Authorization"] = f"Bearer {settings.key}"
            if settings.url.startswith("http:"):
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
        """One request. It ends in time: within twice its time where an answer drips in byte by byte."""
        try:
            seconds = _left(until)
            response = self._pool.urlopen(
                "POST",
                self._path,
                body=body,
                headers=self._headers,
                retries=False,
                redirect=False,  # another address must not get the key
                timeout=urllib3.Timeout(total=seconds),
                preload_content=False,
            )
            good = 200 <= response.status < 300
            answer = _read(response, most_bytes if good else _MOST_ERROR_BYTES, until)
        except (HTTPError, OSError) as error:
            raise unanswered(self._settings, error) from error
        if not good:
            raise refused(self._settings, response.status, response.headers, answer)
        if len(answer) > most_bytes:
            text = "the answer is longer than that of a model: check url"
            raise EndpointError(self._settings, text, outcome="answer", away=False)
        return answer


def _pool(settings: EndpointSettings) -> urllib3.HTTPConnectionPool:
    """As many connections as requests may be under way, each kept for the next one."""
    at = urlsplit(settings.url)
    assert at.hostname  # the settings have seen to that
    if at.scheme == "http":
        return urllib3.HTTPConnectionPool(at.hostname, at.port, maxsize=settings.concurrency)
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except OSError as error:
        text = f"ca_file {settings.ca_file!r} cannot be used: {error}: name a PEM file"
        raise EndpointError(settings, text, outcome="connection") from error
    return urllib3.HTTPSConnectionPool(at.hostname, at.port, maxsize=settings.concurrency, ssl_context=context)


def _read(response: urllib3.BaseHTTPResponse, most_bytes: int, until: float) -> bytes:
    """The body; of one that is too long the beginning, a little longer than ``most_bytes``."""
    parts, size = [], 0
    try:
        while part := response.read1(_CHUNK):
            parts.append(part)
            size += len(part)
            if size > most_bytes:
                break
            _left(until)
    finally:
        response.close()  # a connection with the rest of an answer in it is of no use; read to its end, it is kept
    return b"".join(parts)


def _left(until: float) -> float:
    """The seconds that are left; TimeoutError if none are."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _back_off(sent: int) -> float:
    """The wait before the next request, s; random, so that several workers do not come at once."""
    longest = min(FIRST_WAIT_SECONDS * 2.0 ** (sent - 1), LONGEST_WAIT_SECONDS)
    return longest * random.uniform(0.5, 1.0)
