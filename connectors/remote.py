"""What sets a file system over the network apart: how it is opened, requests that end in time, reads by range.

Azure's client retries by itself, after 15 s and more; ``Patience`` does that for every system alike and
notices within a second that one is back. So the client's own retries are switched off here.
"""

import functools
import io
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import fsspec
from fsspec.asyn import AsyncFileSystem

from voltmill.connectors.extras import need

#: What adlfs calls Azure; all of them use the Blob API.
AZURE: Final = ("abfs", "abfss", "az")
#: What adlfs takes to open an account, beside a credential, from the options or from ``AZURE_STORAGE_...``.
_KEYS: Final = ("connection_string", "account_key", "sas_token", "client_id")
#: Parts of one file that are under way at a time: above 64 MiB a file goes up in parts of 4 MiB, and comes down in
#: such above 32 MiB. adlfs would send all of them at once, each a copy in memory and a connection.
_PARTS_AT_ONCE: Final = 4


def is_azure(url: str) -> bool:
    """Whether a URL is of Azure Storage."""
    return url.partition("://")[0] in AZURE


def open_url(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of an fsspec URL, with no retries of its own, and the path in it.

    Raises:
        MissingExtra: it is of Azure, whose packages are not installed.
        ImportError: a package of another file system is not installed.
        ValueError: the options are not such as it takes.
    """
    options = dict(options)
    if re.match(r"https?://[^/]*\.(blob|dfs)\.core\.windows\.net(/|$)", url):  # as the portal shows a container
        raise ValueError("a container is named abfs://CONTAINER/FOLDER, its account in storage_options")
    if is_azure(url):
        need("adlfs", f"a lake at {shown(url)}")
        if options.get("client_id"):
            need("azure.identity", f"a lake at {shown(url)}")
        options = {"max_concurrency": _PARTS_AT_ONCE} | _with_credential(url, options)
    try:
        fs, root = fsspec.url_to_fs(url, **options)
    except ValueError as error:
        if "Must provide either a connection_string or account_name" not in str(error):
            raise
        raise ValueError("no account is named: set account_name in storage_options") from None
    config = getattr(getattr(fs, "service_client", None), "_config", None)  # adlfs has no option that says it
    if config is not None:
        config.retry_policy.total_retries = 0
    return fs, root


def _with_credential(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the credential of Entra ID where they ask for it, or name nothing else.

    adlfs would make one of its own for each thread that opens the lake; they would all ask for tokens.
    """
    named = [name for name in _KEYS if options.get(name)]
    if options.get("credential") and (named or os.environ.get("AZURE_STORAGE_CONNECTION_STRING")):
        other = named[0] if named else "the environment's AZURE_STORAGE_CONNECTION_STRING"
        raise ValueError(f"credential stands beside {other}, which would be used instead: leave one of them out")
    inherited = any(os.environ.get(f"AZURE_STORAGE_{name.upper()}") for name in _KEYS)
    if options.get("credential") or not (named or inherited or options.get("anon")):
        options["credential"] = _default_credential(shown(url))
    return options


@functools.cache
def _default_credential(url: str) -> Any:
    """What finds out by itself who we are: by the environment, a workload's or machine's identity, or a login.

    One for all threads, for it keeps the token. adlfs closes it at the end of the process.
    """
    return need("azure.identity.aio", f"a lake at {url}").DefaultAzureCredential()


def ends_in_time(fs: Any) -> bool:
    """Whether each call takes ``timeout``, s: file systems that are asynchronous inside do."""
    return isinstance(fs, AsyncFileSystem)


def shown(url: str) -> str:
    """A URL as it may be logged: without password and query, also where the password should have been quoted.

    Example:
        >>> shown("ftp://mill:p/w@rd@files.example/lake?sig=x"), shown("abfs://fleet@bms.dfs.core.windows.net/lake")
        ('ftp://mill:***@files.example/lake', 'abfs://fleet@bms.dfs.core.windows.net/lake')
    """
    return re.sub(r"(//[^/:@]*):.*@", r"\1:***@", url.partition("?")[0])


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
