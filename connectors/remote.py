"""What sets a file system over the network apart: errors that pass, requests that end in time, reads by range.

Azure's client retries by itself, after 15 s and more; ``Patience`` does that for every system alike and
notices within a second that one is back. So the client's own retries are switched off here.
"""

import errno
import io
import re
from collections.abc import Callable
from typing import Any, Final

import fsspec
from fsspec.asyn import AsyncFileSystem

#: Errors of a disk or a mount that pass, or that an operator mends: full, away, stale, read-only, not allowed.
_PASSING: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EPERM", "EBUSY", "EAGAIN", "EMFILE", "ENFILE", "ENOMEM"),
        *("ENOENT", "ENOTDIR", "EEXIST", "ESTALE", "ENODEV", "ENXIO", "EREMOTEIO", "ENOLINK", "ENOTCONN"),
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ESHUTDOWN"),
    )
)
#: Answers that pass: time-out, conflict (a container that is being deleted), too many requests. 404: the container.
_PASSING_STATUS: Final = frozenset({404, 408, 409, 429})
#: Answers that an operator mends while the flow runs: a key that was changed, a role that was taken.
_DENIED: Final = frozenset({401, 403})

_SECRET: Final = re.compile(
    r"((?:AccountKey|SharedAccessSignature|sig|password|secret|token)=)[^;&\s'\"]+", re.IGNORECASE
)


def open_url(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system of an fsspec URL, with no retries of its own, and the path in it."""
    fs, root = fsspec.url_to_fs(url, **options)
    config = getattr(getattr(fs, "service_client", None), "_config", None)  # adlfs has no option that says it
    if config is not None:
        config.retry_policy.total_retries = 0
    return fs, root


def ends_in_time(fs: Any) -> bool:
    """Whether each call takes ``timeout``, s: file systems that are asynchronous inside do."""
    return isinstance(fs, AsyncFileSystem)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error or one of its causes was made from."""
    cause: BaseException | None = error
    while cause is not None:
        for name in ("status_code", "status"):
            if isinstance(status := getattr(cause, name, None), int):
                return status
        cause = cause.__cause__
    return None


def may_pass(error: BaseException) -> bool:
    """Whether an error may pass by itself, or once an operator has mended what it names."""
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS or status in _DENIED
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (
            cause.errno in _PASSING or isinstance(cause, ConnectionError | TimeoutError)
        ):
            return True
        if isinstance(cause, _network_errors()):
            return True
        cause = cause.__cause__
    return False


def denied(error: BaseException) -> bool:
    """Whether the credentials opened nothing."""
    from azure.core.exceptions import ClientAuthenticationError

    return status_of(error) in _DENIED or isinstance(error, ClientAuthenticationError)


def _network_errors() -> tuple[type[Exception], ...]:
    # Imported when there is an error: aiohttp and azure cost 0.3 s, which a local lake need not pay.
    from aiohttp import ClientConnectionError, ClientPayloadError
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError

    refused = ClientAuthenticationError  # without a status when no token could be had
    return (ClientConnectionError, ClientPayloadError, refused, ServiceRequestError, ServiceResponseError)


def line_of(error: Exception, options: dict[str, Any]) -> str:
    """An error of a library on one line, with what could open the lake struck out.

    Of an answer of Azure's the sentence and the code, not the XML they came in.
    """
    text = " ".join(str(error).split())
    if isinstance(error, TimeoutError):
        text = text or "no answer in time"
    if code := re.search(r" RequestId:.* ErrorCode: ?(\w+)", text):
        text = f"{text[: code.start()]} ({code[1]})"
    line = _SECRET.sub(r"\1***", f"{type(error).__name__}: {text}")
    for secret in (value for value in options.values() if isinstance(value, str) and len(value) > 3):
        line = line.replace(secret, "***")
    return line[:400]


def shown(url: str) -> str:
    """A URL as it may be logged: without password and query."""
    return re.sub(r"(//[^/:@]*):[^/@]*@", r"\1:***@", url.split("?")[0])


class RangeFile(io.RawIOBase):
    """A file read by ranges, each a request of its own that is tried again like any other.

    Args:
        size: its bytes.
        read: gives the bytes from one position up to another.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._read = read
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position of the byte that comes next."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as far as the file goes."""
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._read(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
