"""Whole files in a folder, a bucket or a container: read, listed, removed and, above all, written.

A file is written so that no reader ever meets a half of it: on a local disk under a hidden name
first, flushed to the disk and then renamed; elsewhere in one request, for object stores publish a
blob when its last byte is there. (A writer that fails half-way through an *open* remote file
publishes a truncated blob, so none is opened.)

An error is tried again with growing pauses, whatever its kind: no class of error means the same in
every fsspec file system, and one that does not pass costs some seconds before it is reported.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import IO, Any, Final, TypeVar

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.1


class LakeError(Exception):
    """A file of the lake, or the lake itself, that cannot be used; one line that names it."""


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
        tries: how often an operation is tried before its error is raised.

    Raises:
        LakeError: the URL's protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, *, tries: int = 1) -> None:
        try:
            self.fs, self.root = fsspec.url_to_fs(url, **(options or {}))
        except (ImportError, ValueError, TypeError) as error:
            raise LakeError(f"lake {url}: {error}") from error
        self.url = url
        self.tries = tries
        self.local = isinstance(self.fs, LocalFileSystem)

    def path(self, relative: str) -> str:
        """The path as the file system knows it."""
        return f"{self.root.rstrip('/')}/{relative}"

    def write(self, relative: str, data: pa.Buffer) -> None:
        """Store a whole file, over an older one of that name; it is durable when this returns."""
        self._tried("write", relative, lambda: self._write_once(self.path(relative), data))

    def remove(self, relative: str) -> None:
        """Remove a file; one that is not there is no error."""
        self._tried("remove", relative, lambda: self._remove_once(self.path(relative)))

    def move(self, relative: str, new: str) -> None:
        """Give a file another path, where none is yet."""
        self._tried("move", relative, lambda: self._move_once(self.path(relative), self.path(new)))

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted, hidden ones too; empty when it does not exist."""
        return self._tried("list", folder, lambda: self._names_once(self.path(folder)))

    def find(self, folder: str) -> list[str]:
        """Every file below a folder, relative to it, in name order (by code point), hidden ones left out."""
        base = self.path(folder)
        found = self._tried("list", folder, lambda: self._find_once(base))
        relative = (path[len(base) + 1 :] for path in found)
        return sorted(path for path in relative if not hidden(path))

    def open(self, relative: str) -> str | IO[bytes]:
        """What pyarrow reads a file from: a path when it is local, else an open file."""
        path = self.path(relative)
        return path if self.local else self._tried("open", relative, lambda: self.fs.open(path, "rb"))

    def _write_once(self, path: str, data: pa.Buffer) -> None:
        if self.local:
            _write_local(path, data)
        else:
            self.fs.pipe_file(path, data.to_pybytes())

    def _move_once(self, path: str, new: str) -> None:
        self.fs.makedirs(new.rsplit("/", 1)[0], exist_ok=True)
        self.fs.mv(path, new)

    def _remove_once(self, path: str) -> None:
        try:
            self.fs.rm_file(path)
        except FileNotFoundError:
            return

    def _names_once(self, path: str) -> list[str]:
        self.fs.invalidate_cache()  # listings are cached; another process may have written since
        try:
            return sorted(PurePosixPath(entry).name for entry in self.fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    def _find_once(self, path: str) -> list[str]:
        self.fs.invalidate_cache()
        return list(self.fs.find(path))

    def _tried(self, verb: str, relative: str, do: Callable[[], T]) -> T:
        pause = FIRST_PAUSE_SECONDS
        for left in reversed(range(self.tries)):
            try:
                return do()
            except Exception as error:
                if not left:
                    raise LakeError(f"lake {self.url}: cannot {verb} {relative}: {_line(error)}") from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause *= 2
        raise AssertionError("tries is at least 1")


def _write_local(path: str, data: pa.Buffer) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    # The rename itself is durable once the folder is: the epoch that follows relies on it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(error: Exception) -> str:
    """An error of a library on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
