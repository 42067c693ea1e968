"""Files on a local disk, whole or not at all: written under a hidden name, flushed, renamed, the folder flushed."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa


def sizes(base: str) -> Iterator[tuple[str, int]]:
    """Files with their bytes; what goes meanwhile is left out, an error is raised (fsspec leaves the folder out)."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(base, onerror=failed):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                yield path, os.stat(path).st_size


def write(root: str, relative: str, data: pa.Buffer, *, new: bool = False) -> None:
    """Store a whole file below the root, which is there; durable when this returns, and nothing left when it fails.

    ``new``: ``FileExistsError`` where one of that name is.
    """
    folder, name = os.path.split(os.path.join(root, relative))
    # Of those that try to be the first, each has a file of its own.
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp" if new else f".{name}.tmp")
    make_folders(root, os.path.dirname(relative))
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(temporary, os.path.join(folder, name))  # unlike a rename it replaces nothing
            os.remove(temporary)
        else:
            os.replace(temporary, os.path.join(folder, name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)  # on a full disk it would hold the last of the room
        raise
    # The rename itself is durable once the folder is: the epoch that follows relies on it.
    _flush_folder(folder)


def make_folders(root: str, relative: str) -> None:
    """Make the folders below the root, which is there, each durable in the one above."""
    above = root
    for part in PurePosixPath(relative).parts:
        folder = os.path.join(above, part)
        try:
            os.mkdir(folder)
        except FileExistsError:
            pass
        else:
            _flush_folder(above)
        above = folder


def _flush_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
