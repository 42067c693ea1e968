"""Who uses a recovery store: a lock that every process of a flow holds while it runs.

The lock is an advisory one (flock) on the file ``lock`` in the store's folder, so it ends with its
process, however that ends. The processes of a flow share it; ``voltmill rescale``, and the first of a
flow's processes while it looks after the store, hold it alone. It works on a local disk, where a store
must be.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

_FILE: Final = "lock"


class StoreLock:
    """The lock of one store; open until ``close``, or until the process ends.

    ``note`` is a number that the holders leave each other in the file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @property
    def stands(self) -> bool:
        """Whether the file is still the one in the folder: a rescaled store has another."""
        try:
            there = self._path.stat()
        except OSError:
            return False
        return os.path.samestat(os.fstat(self._fd), there)

    def take(self, *, shared: bool) -> bool:
        """Try to get the lock, or to change how it is held; return at once whether it worked."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @property
    def note(self) -> int | None:
        """The number that was left, if one was."""
        text = os.pread(self._fd, 32, 0)
        return int(text) if text.removeprefix(b"-").strip().isdigit() else None

    @note.setter
    def note(self, number: int) -> None:
        text = f"{number}\n".encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def close(self) -> None:
        """Give it back and close the file."""
        os.close(self._fd)
