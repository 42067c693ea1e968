"""Processes that end with us, whatever ends us."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path


def spawn(arguments: list[str], log: Path, *, cwd: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start ``python ARGUMENTS`` with both of its outputs appended to a file."""
    setpriv = shutil.which("setpriv")  # util-linux: the kernel ends the child with its parent
    prefix = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv and sys.platform == "linux" else []
    with log.open("ab") as out:
        return subprocess.Popen([*prefix, sys.executable, *arguments], stdout=out, stderr=out, cwd=cwd)


def end(process: "subprocess.Popen[bytes] | None") -> None:
    """Kill a process that may have ended or be stopped, and collect it."""
    if process is not None and process.poll() is None:
        process.kill()
        process.send_signal(signal.SIGCONT)
        process.wait()
