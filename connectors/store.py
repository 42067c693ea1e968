"""Whole files in a folder, a bucket or a container: read, listed, removed and, above all, written.

A file is written so that no reader ever meets a half of it: on a local disk under a hidden name
first, flushed to the disk and then renamed; elsewhere in one request, for object stores publish a
blob when its last byte is there. (A writer that fails half-way through an *open* remote file
publishes a truncated blob, so none is opened.)

What is away is waited for (``Patience``): a full disk, a folder that was taken away or may not be
written, a server that does not answer. The lake's own folder or container is never made by a write,
for a mount or a container that is missing for a while would be split in two.
"""

import gc
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from voltmill.connectors import local, remote, remote_errors
from voltmill.connectors.outage import Patience

T = TypeVar("T")

#: How long a command that runs once waits for a lake that is away, s.
ONE_OFF_SECONDS: Final = 5.0

#: Bytes that give a request to a remote store one second more: 8 Mbit/s, the least an uplink must do.
_BYTES_A_SECOND: Final = 1 << 20

#: Azure's client leaves 100 KB in reference cycles with each failed request: a long outage would add them up
#: to 150 MB before the collector comes by itself. A collection takes a tenth of a second.
_FAILURES_A_COLLECTION: Final = 50

# Azure's client logs each request at INFO, with its address: a SAS token is part of that.
logging.getLogger("azure").setLevel(logging.WARNING)
# A dozen lines for each token that is not to be had; the error that is raised says it in one.
logging.getLogger("azure.identity").setLevel(logging.ERROR)


class LakeError(Exception):
    """A file of the lake, or the lake itself, that cannot be used; one line that names it."""


class LakeAwayError(LakeError):
    """One that may pass: the lake does not answer, is full, or does not let us in.

    Attributes:
        retry_after: how long the lake asks to be left alone, s.
    """

    retry_after = 0.0


def hidden(path: str) -> bool:
    """Whether a relative path names a temporary or private file: a part of it begins with ``.`` or ``_``.

    Example:
        >>> hidden("date=2026-11-22/shard=03/.x.parquet.tmp"), hidden("date=2026-11-22/x.parquet")
        (True, False)
    """
    return any(part.startswith((".", "_")) for part in PurePosixPath(path).parts)


class Store:
    """The files under one fsspec URL; every path is relative to it, with ``/`` between its parts.

    Args:
        url: a folder (``voltmill-data/lake``) or any fsspec URL (``abfs://container/lake``).
        options: what the file system needs beside the URL: account, credentials.
        patience: how long an absent lake is waited for; None: ``ONE_OFF_SECONDS``.
        attempt_seconds: how long one request to a remote store may take, s, and a second more a MiB it
            carries (to list a table ten times as long); the local disk, and file systems of fsspec that are
            not asynchronous, have no limit.

    Raises:
        LakeError: the URL's protocol is unknown or its package is not installed; in every method: what does
            not pass, or did not in time (then it is a ``LakeAwayError``). It never holds a secret.
    """

    def __init__(
        self,
        url: str,
        options: dict[str, Any] | None = None,
        *,
        patience: Patience | None = None,
        attempt_seconds: float = 10.0,
    ) -> None:
        self.url = remote.shown(url)
        self._options = dict(options or {})
        try:
            self.fs, self.root = remote.open_url(url, self._options)
        except (ImportError, ValueError, TypeError) as error:
            raise LakeError(f"lake {self.url}: {remote_errors.line_of(error, self._options)}") from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self._patience = patience or Patience("the lake", seconds=ONE_OFF_SECONDS)
        self._attempt_seconds = attempt_seconds
        self._limited = remote.ends_in_time(self.fs)
        self._failed = 0

    def path(self, relative: str) -> str:
        """The path as the file system knows it."""
        return f"{self.root.rstrip('/')}/{relative}"

    def make(self) -> None:
        """Make the folder or the container if it is not there. A key that opens nothing is an error at once."""
        self._call("make", "it", self._make_once, denied_passes=False)

    def write(self, relative: str, data: pa.Buffer) -> None:
        """Store a whole file, over an older one of that name; it is durable when this returns."""
        self._call("write", relative, lambda: self._write_once(relative, data))

    def create(self, relative: str, data: pa.Buffer) -> bool:
        """Store a whole file where none of that name is: of many that try at once, one does.

        Returns:
            Whether it did; False: the file that is there stays as it is. (It may be one's own: of an attempt
            whose answer was lost.)
        """
        return self._call("create", relative, lambda: self._create_once(relative, data))

    def read(self, relative: str) -> bytes:
        """The whole of a small file.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.path(relative)
        return self._call("read", relative, lambda: bytes(self.fs.cat_file(path, **self._limit())))

    def remove(self, relative: str) -> None:
        """Remove a file; one that is not there is no error."""
        self._call("remove", relative, lambda: self._remove_once(self.path(relative)))

    def move(self, relative: str, new: str) -> None:
        """Give a file another path, where none is yet."""
        self._call("move", relative, lambda: self._move_once(relative, new))

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted, hidden ones too; empty when it does not exist, though the lake does."""
        return self._call("list", folder or "it", lambda: self._names_once(self.path(folder)))

    def find(self, folder: str) -> list[str]:
        """Every file below a folder, relative to it, in name order (by code point), hidden ones left out."""
        return list(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """The same with the bytes of each file; a folder that may not be read is an error."""
        base = self.path(folder).rstrip("/")
        found = self._call("list", folder, lambda: self._sizes_once(base))
        relative = ((path[len(base) + 1 :], size) for path, size in found)
        return dict(sorted((path, size) for path, size in relative if not hidden(path)))

    def open(self, relative: str) -> "str | remote.RangeFile":
        """What pyarrow reads a file from: a path when it is local, else an open file.

        Raises:
            FileNotFoundError: it is not there, now or (while it is read) no longer.
        """
        path = self.path(relative)
        if self.local:
            return path

        def read(start: int, stop: int) -> bytes:
            limit = self._limit(stop - start)
            return self._call("read", relative, lambda: bytes(self.fs.cat_file(path, start, stop, **limit)))

        return remote.RangeFile(self._call("read", relative, lambda: self._size_once(path)), read)

    def _make_once(self) -> None:
        if self.local:
            os.makedirs(self.root, exist_ok=True)
            return
        try:
            self._ls(self._top())
        except FileNotFoundError:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # adlfs warns where a token may not look at the container itself
                self.fs.mkdir(self._top(), **self._limit())

    def _write_once(self, relative: str, data: pa.Buffer) -> None:
        if self.local:
            local.write(self.root, relative, data)
        else:
            self.fs.pipe_file(self.path(relative), data.to_pybytes(), **self._limit(data.size))

    def _create_once(self, relative: str, data: pa.Buffer) -> bool:
        try:
            if self.local:
                local.write(self.root, relative, data, new=True)
            else:
                self.fs.pipe_file(self.path(relative), data.to_pybytes(), mode="create", **self._limit(data.size))
        except FileExistsError as error:
            if remote_errors.is_there(error):
                return False
            raise
        return True

    def _move_once(self, relative: str, new: str) -> None:
        if self.local:
            local.make_folders(self.root, os.path.dirname(new))
            os.replace(self.path(relative), self.path(new))
            return
        path = self.path(relative)
        try:
            data = self.fs.cat_file(path, **self._limit(self._size_once(path)))
        except FileNotFoundError:  # an attempt whose answer was lost has moved it
            return
        self.fs.pipe_file(self.path(new), data, **self._limit(len(data)))
        self._remove_once(path)

    def _size_once(self, path: str) -> int:
        self.fs.invalidate_cache()
        size = self.fs.info(path, **self._limit())["size"]
        if size is None:  # what others lie below
            raise FileNotFoundError(path)
        return int(size)

    def _remove_once(self, path: str) -> None:
        try:
            self.fs.rm_file(path, **self._limit())
        except FileNotFoundError:
            return

    def _names_once(self, path: str) -> list[str]:
        try:
            return sorted(PurePosixPath(entry).name for entry in self._ls(path))
        except FileNotFoundError:
            self._ls(self._top())
            return []

    def _sizes_once(self, path: str) -> list[tuple[str, int]]:
        if self.local:
            return list(local.sizes(path))
        self.fs.invalidate_cache()
        found = self.fs.find(path, detail=True, **self._limit(requests=10))  # 5,000 names each, in Azure
        if not found:
            self._ls(self._top())  # adlfs finds nothing in a container that is not there, too
        return [(path, entry["size"]) for path, entry in found.items()]

    def _ls(self, path: str) -> list[str]:
        self.fs.invalidate_cache()  # listings are cached; another process may have written since
        return list(self.fs.ls(path, detail=False, **self._limit()))

    def _top(self) -> str:
        """What must be there before anything can: the folder, or the container of an object store."""
        return str(self.root).split("/")[0] if self._limited else str(self.root)

    def _limit(self, size: int = 0, *, requests: int = 1) -> dict[str, float]:
        """The argument that ends a request of ``size`` bytes in time, where the file system takes one."""
        return {"timeout": requests * self._attempt_seconds + size / _BYTES_A_SECOND} if self._limited else {}

    def _call(self, verb: str, relative: str, do: Callable[[], T], *, denied_passes: bool = True) -> T:
        def attempt() -> T:
            try:
                return do()
            except Exception as error:
                if verb == "read" and isinstance(error, FileNotFoundError):
                    raise
                self._failed += 1
                if self._limited and self._failed % _FAILURES_A_COLLECTION == 0:
                    gc.collect()
                passes = remote_errors.may_pass(error) and (denied_passes or not remote_errors.denied(error))
                line = remote_errors.line_of(error, self._options)
                failed = (LakeAwayError if passes else LakeError)(f"lake {self.url}: cannot {verb} {relative}: {line}")
                if isinstance(failed, LakeAwayError):
                    failed.retry_after = remote_errors.retry_after(error)
                raise failed from error

        return self._patience.call(attempt, lambda error: isinstance(error, LakeAwayError))
