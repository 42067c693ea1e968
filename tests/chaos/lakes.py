"""The lakes of the chaos suite: what breaks them, and all of their files in a folder at the end."""

import os
import subprocess
from pathlib import Path
from typing import Final, Protocol

from chaos.faults import LAKE, Fault

_TMPFS_BYTES: Final = 4 << 30
_PAGE: Final = 4096


class Lake(Protocol):
    """A lake that takes telemetry, predictions and dead letters."""

    name: str
    config: str
    """The ``[lake]`` table, without what says when files are written."""

    def faults(self) -> list[Fault]:
        """What can be done to it."""

    def collect(self) -> Path:
        """A local folder with all that it holds."""

    def close(self) -> None:
        """Stop it."""


class LocalLake:
    """A folder behind a symbolic link, so that it can be put away and put back at one stroke.

    Where mounting is allowed it is a file system of its own (tmpfs), which can be made full.
    """

    def __init__(self, folder: Path) -> None:
        self._link, self._real = folder / "lake", folder / "lake-files"
        self._real.mkdir()
        self._link.symlink_to(self._real.name)
        self.mounted = _mount(self._real)
        self.name = "local folder (tmpfs)" if self.mounted else "local folder"
        self.config = f'[lake]\nurl = "{self._link}"\n'

    def faults(self) -> list[Fault]:
        away = [
            Fault("lake away", LAKE, self._put_away, self._put_back, (0.5, 8.0)),
            Fault("lake away, minutes", LAKE, self._put_away, self._put_back, (60.0, 90.0), rare=True),
        ]
        full = [Fault("lake's disk full", LAKE, self._fill, self._empty, (0.5, 8.0))] if self.mounted else []
        return away + full

    def collect(self) -> Path:
        return self._real

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self._real)], check=False)

    def _put_away(self) -> None:
        """Put a file where the folder was."""
        file = self._link.with_name("lake.away")
        file.write_text("no folder")
        os.replace(file, self._link)

    def _put_back(self) -> None:
        link = self._link.with_name("lake.back")
        link.symlink_to(self._real.name)
        os.replace(link, self._link)

    def _fill(self) -> None:
        """Leave no page free: the file system shrinks to what is in it."""
        for _ in range(50):
            state = os.statvfs(self._real)
            used = (state.f_blocks - state.f_bfree) * state.f_frsize
            if _remount(self._real, max(used, _PAGE)):
                return
        raise RuntimeError("the tmpfs cannot be shrunk to what is in it")

    def _empty(self) -> None:
        _remount(self._real, _TMPFS_BYTES)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _remount(folder: Path, size: int) -> bool:
    command = ["mount", "-o", f"remount,size={size}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
