"""A folder that can be made full: a small file system of its own (tmpfs), where mounting is allowed."""

import os
import subprocess
from pathlib import Path
from typing import Final

_BYTES: Final = 4 << 30
_PAGE: Final = 4096


class Disk:
    """A folder on a file system of its own; without the right to mount a plain folder that is never full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.mounted = _mount("-t", "tmpfs", "-o", f"size={_BYTES}", "tmpfs", str(folder))

    def fill(self) -> None:
        """Leave no page free: the file system shrinks to what is in it."""
        for _ in range(50):
            state = os.statvfs(self.folder)
            used = (state.f_blocks - state.f_bfree) * state.f_frsize
            if self._resize(max(used, _PAGE)):
                return
        raise RuntimeError(f"{self.folder}: cannot be shrunk to what is in it")

    def empty(self) -> None:
        """Have space again."""
        self._resize(_BYTES)

    def close(self) -> None:
        """Unmount it; what is in it is gone."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    def _resize(self, size: int) -> bool:
        return _mount("-o", f"remount,size={size}", str(self.folder))


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
