"""Waiting for an outside system that is away: the one place that decides how long and how often.

Whoever stores something calls it through ``Patience``. While the system is away that call does not
return, so the worker takes no more from its sources and the messages wait where they are safe: with
the broker. Memory stays as it is, and nothing is acknowledged that is not stored.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from voltmill.connectors.drain import Drain

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.05
#: Bounds how late the return of a system is noticed.
LONGEST_PAUSE_SECONDS: Final = 1.0
#: What a system asks for is heeded up to this time, s: longer ones are tried before, for they may be back.
_LONGEST_ASKED_SECONDS: Final = 60.0
#: How long a flow that is asked to stop still waits; what is not stored by then comes again.
DRAIN_SECONDS: Final = 5.0
_WORD_EVERY_SECONDS: Final = 60.0

log = logging.getLogger("voltmill.outage")


class Patience:
    """Calls again what an outage made fail: until it works, the time is over, or the flow is to stop.

    Args:
        system: what is waited for, as the log names it: no secret in it.
        seconds: how long it is waited for, s; 0: as long as it takes.
        drain: once it is requested, at most ``DRAIN_SECONDS`` more are waited.
        on_waiting: called with True when a wait begins and with False when it is over.

    Example:
        >>> tries = iter([ConnectionError("away"), ConnectionError("away"), None])
        >>> def attempt() -> str:
        ...     if error := next(tries):
        ...         raise error
        ...     return "stored"
        >>> Patience("a database", seconds=5.0).call(attempt, lambda error: isinstance(error, ConnectionError))
        'stored'
    """

    def __init__(
        self,
        system: str,
        *,
        seconds: float = 0.0,
        drain: Drain | None = None,
        on_waiting: Callable[[bool], None] = lambda waiting: None,
    ) -> None:
        self._system = system
        self._seconds = seconds
        self._drain = drain or Drain()
        self._on_waiting = on_waiting

    def call(self, attempt: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
        """What ``attempt`` returns.

        Args:
            attempt: does the whole piece of work or nothing of it; called again after a failure.
            passes: whether an error may pass by itself; any other is raised at once. Where it has ``retry_after``,
                s, the next attempt is that far off, a minute at most.

        Raises:
            Exception: the last error of ``attempt``, when it does not pass or the wait is over.
        """
        try:
            return attempt()
        except Exception as error:
            if not passes(error):
                raise
            first = error
        # Not in the handler: it would be taken for the origin of the errors of later attempts.
        return self._wait(attempt, passes, first)

    def _wait(self, attempt: Callable[[], T], passes: Callable[[Exception], bool], error: Exception) -> T:
        began = time.monotonic()
        deadline = began + self._seconds if self._seconds else float("inf")
        pause, said = FIRST_PAUSE_SECONDS, -float("inf")
        self._on_waiting(True)
        try:
            while True:
                now = time.monotonic()
                if self._drain.requested:
                    deadline = min(deadline, now + DRAIN_SECONDS)
                if now >= deadline:
                    raise error
                if now - said >= _WORD_EVERY_SECONDS:
                    waited = {"seconds": round(now - began, 1)}
                    said_of = _line(error).removeprefix(f"{self._system}: ")
                    log.warning("waiting for %s: %s", self._system, said_of, extra=waited)
                    said = now
                asked = min(getattr(error, "retry_after", 0.0), _LONGEST_ASKED_SECONDS)
                self._pause(min(max(pause * random.uniform(0.5, 1.0), asked), deadline - now))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                try:
                    result = attempt()
                except Exception as again:
                    if not passes(again):
                        raise
                    error = again
                    continue
                log.info("%s is back", self._system, extra={"seconds": round(time.monotonic() - began, 1)})
                return result
        finally:
            self._on_waiting(False)

    def _pause(self, seconds: float) -> None:
        """Sleep; a request to drain that comes in the meantime cuts it short, one that was there does not."""
        if self._drain.requested:
            time.sleep(seconds)
        else:
            self._drain.wait(seconds)


def _line(error: Exception) -> str:
    """An error on one line; those of our own are one, and say what they are about."""
    line = " ".join(str(error).split())[:300]
    return line if type(error).__module__.startswith("voltmill.") else f"{type(error).__name__}: {line}"
