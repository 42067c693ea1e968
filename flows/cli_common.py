"""What the commands share: the configuration option, progress on the terminal, times as they are typed."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from voltmill.flows.config import ConfigError

ConfigFile = Annotated[Path | None, typer.Option("-c", "--config", help="TOML file; without it, the defaults.")]
FinishedStores = Annotated[
    list[str] | None,
    typer.Option(help="A recovery store whose flow never runs again: its last files too. May be given again."),
]


class Ticker:
    """Says how far something is, on standard error: on a terminal each second in place, else a line now and then."""

    TERMINAL_SECONDS = 1.0
    LOG_SECONDS = 10.0

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to say something."""
        pause = self.TERMINAL_SECONDS if sys.stderr.isatty() else self.LOG_SECONDS
        return time.monotonic() - self._last > pause

    def say(self, text: str, *, end: bool = False) -> None:
        """Say it; on a terminal, ``end`` leaves the line."""
        self._last = time.monotonic()
        if not sys.stderr.isatty():
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        else:
            show_line(text, end=end)


class Progress:
    """A line that tells files, rows and rows a second.

    Args:
        what: What is counted: ``file``.
    """

    def __init__(self, what: str) -> None:
        self._what, self._ticker = what, Ticker()
        self._began: float | None = None
        self._first = 0

    def __call__(self, done: int, total: int, rows: int) -> None:
        """Show how far it is; rows that were there at the first call do not count for the speed."""
        if self._began is None:
            self._began, self._first = time.monotonic(), rows
        if self._ticker.due() or (done == total and sys.stderr.isatty()):
            speed = (rows - self._first) / max(time.monotonic() - self._began, 1e-9)
            share = 100 * done // max(total, 1)
            text = f"{self._what} {done} of {total} ({share} %), {rows} rows, {speed:.0f} rows/s"
            self._ticker.say(text, end=done == total)


def show_line(text: str, *, end: bool = False) -> None:
    """Show progress on standard error, if someone is looking."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if end else ""))
        sys.stderr.flush()


def parse_range(start: str, stop: str) -> tuple[datetime | None, datetime | None]:
    """The times given to ``--from`` and ``--to``.

    Raises:
        ConfigError: One is no such time, or they are the wrong way round.
    """
    first, last = parse_time(start, "--from"), parse_time(stop, "--to")
    if first and last and last <= first:
        raise ConfigError(f"--to {stop}: is not after --from {start}")
    return first, last


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
