"""Requests to one server over HTTP: connections are kept, and each request ends in time, whatever the server does.

Redirects are not followed, for another address must not get the key; proxies of the environment are not used.
"""

import datetime
import logging
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import urllib3

_MOST_ERROR_BYTES: Final = 65_536
_CHUNK: Final = 65_536
_MOST_RETRY_AFTER: Final = 86_400.0
_SHOWN: Final = 300
_SECRET: Final = re.compile(
    r"(bearer\s+|(?:key|token|secret|signature|sig|password)\W{1,5})[^\s\"'&;,<]+", re.IGNORECASE
)
#: Where urllib3 begins with what it has tried to reach; that is in the line already.
_POOL: Final = re.compile(r"^\W*(<[^>]*>|HTTPS?Connection(Pool)?\([^)]*\)): ")

#: Its debug lines show whole URLs, and that of a webhook may be a secret.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        status: of HTTP.
        headers: their names are looked up without regard to case.
        body: cut a little beyond the most bytes that were asked for.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def good(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300


class HttpPool:
    """Connections to one URL; may be used from several threads.

    Args:
        url: where the requests go: http or https, with a host.
        ca_file: PEM file of the authorities that are trusted; empty: those of the system.
        connections: requests that may be under way at the same time without a new connection for each.

    Raises:
        OSError: ``ca_file`` cannot be used.
    """

    def __init__(self, url: str, *, ca_file: str = "", connections: int = 1) -> None:
        at = urlsplit(url)
        assert at.hostname  # the settings have seen to that
        self._target = (at.path or "/") + (f"?{at.query}" if at.query else "")
        self._pool = urllib3.HTTPConnectionPool(at.hostname, at.port, maxsize=connections)
        if at.scheme == "https":
            context = ssl.create_default_context(cafile=ca_file or None)
            self._pool = urllib3.HTTPSConnectionPool(at.hostname, at.port, maxsize=connections, ssl_context=context)

    def request(self, method: str, body: bytes, headers: Mapping[str, str], *, most_bytes: int, until: float) -> Answer:
        """One request. It ends in time: within twice its time where an answer drips in byte by byte.

        Args:
            method: of HTTP.
            body: of the request.
            headers: of the request.
            most_bytes: of a good answer's body; of any other 64 KiB are read.
            until: on the monotonic clock.

        Raises:
            HTTPError: of urllib3: no answer, or half of one.
            OSError: the same; TimeoutError where the time is over.
        """
        response = self._pool.urlopen(
            method,
            self._target,
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            timeout=urllib3.Timeout(total=_left(until)),
            preload_content=False,
        )
        most = most_bytes if 200 <= response.status < 300 else _MOST_ERROR_BYTES
        return Answer(response.status, response.headers, _read(response, most, until))

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.close()


def retry_after(text: str) -> float:
    """The seconds that the header asks for, as a number or until a date; 0 where it says neither, a day at most."""
    if text.strip().isdecimal():
        return min(float(text), _MOST_RETRY_AFTER)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    now = datetime.datetime.now(datetime.UTC)
    return min(max(0.0, (until - now).total_seconds()), _MOST_RETRY_AFTER) if until.tzinfo else 0.0


def one_line(text: str, *secrets: str) -> str:
    """Text from outside on one line, shortened, with the secrets and all that looks like one struck out."""
    line = _POOL.sub("", " ".join(text.split()))
    for secret in filter(None, secrets):
        line = line.replace(secret, "***")
    return "".join(c for c in _SECRET.sub(r"\1***", line) if c.isprintable())[:_SHOWN]


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
