"""What the commands share: the configuration option, progress on the terminal, times as they are typed."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from voltmill.flows.config import ConfigError

ConfigFile = Annotated[Path | None, typer.Option("-c", "--config", help="TOML file; without it, the defaults.")]


class Progress:
    """A line that counts files and rows, on a terminal in place, else now and then."""

    def __init__(self, what: str) -> None:
        self._what, self._last = what, time.monotonic()

    def __call__(self, done: int, total: int, rows: int) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if done == total or now - self._last > 1:
            self._last = now
            show_line(f"{self._what} {done} of {total}, {rows} rows", end=done == total)


def show_line(text: str, *, end: bool = False) -> None:
    """Show progress on standard error, if someone is looking."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if end else ""))
        sys.stderr.flush()


def parse_time(text: str, option: str) -> datetime | None:
    """A time that was given to an option, UTC where it names no zone; None if it is empty.

    Raises:
        ConfigError: It is no ISO 8601 time, or of a year that telemetry cannot have.
    """
    if not text:
        return None
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: not an ISO 8601 time, such as 2026-11-22T10:00:00Z") from None
    time_ = time_ if time_.tzinfo else time_.replace(tzinfo=UTC)
    if not 2000 <= time_.year < 2100:
        raise ConfigError(f"{option} {text}: not within the years 2000 to 2099, which are all that telemetry has")
    return time_
