"""The lakes of the chaos suite: what breaks them, and all of their files in a folder at the end."""

import os
from pathlib import Path
from typing import Protocol

from chaos.disk import Disk
from chaos.faults import LAKE, Fault


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
    """A folder behind a symbolic link, so that it can be put away and put back at one stroke."""

    name = "local folder"

    def __init__(self, folder: Path) -> None:
        self._disk = Disk(folder / "lake-files")
        self._link = folder / "lake"
        self._link.symlink_to(self._disk.folder.name)
        self.config = f'[lake]\nurl = "{self._link}"\n'

    def faults(self) -> list[Fault]:
        away = [
            Fault("lake away", LAKE, self._put_away, self._put_back, (0.5, 8.0)),
            Fault("lake away, minutes", LAKE, self._put_away, self._put_back, (60.0, 90.0), rare=True),
        ]
        full = Fault("lake's disk full", LAKE, self._disk.fill, self._disk.empty, (0.5, 8.0))
        return [*away, full] if self._disk.mounted else away

    def collect(self) -> Path:
        return self._disk.folder

    def close(self) -> None:
        self._disk.close()

    def _put_away(self) -> None:
        """Put a file where the folder was."""
        file = self._link.with_name("lake.away")
        file.write_text("no folder")
        os.replace(file, self._link)

    def _put_back(self) -> None:
        link = self._link.with_name("lake.back")
        link.symlink_to(self._disk.folder.name)
        os.replace(link, self._link)
