"""What sends the notifications of a shard: a thread beside the stream, so no receiver can hold that up."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from voltmill.connectors.breaker import Breaker
from voltmill.connectors.notify_errors import NotifyError
from voltmill.connectors.notify_notice import Notice
from voltmill.connectors.notify_outbox import Outbox
from voltmill.connectors.notify_settings import NotifySettings

log = logging.getLogger("voltmill.notify")

#: How long an idle thread waits before it looks anew, s.
_IDLE_SECONDS: Final = 60.0
#: How often one whose neighbour tries a place that failed looks whether that worked, s.
_LOOK_SECONDS: Final = 0.25
_JITTER: Final = 0.25


class Channel(Protocol):
    """A connection to one place, for one thread."""

    def send(self, notice: Notice) -> None:
        """Send it, within ``timeout_seconds``; NotifyError if it was not taken."""

    def close(self) -> None:
        """Close the connection."""


class Gate:
    """When a place may be sent to; one for all the threads that do, in a process.

    Args:
        settings: how long the pauses are.
        on_open: called with True when the place is left alone, and with False when it is back.
    """

    def __init__(self, settings: NotifySettings, on_open: Callable[[bool], None] = lambda is_open: None) -> None:
        self._place, self._on_open = settings.place, on_open
        self._breaker = Breaker(settings.first_pause_seconds, settings.longest_pause_seconds, on_open=self._changed)
        self._rest_until = 0.0
        self._last = ""

    @property
    def remaining(self) -> float:
        """How long nothing may be sent, s."""
        return max(self._breaker.remaining, self._rest_until - time.monotonic(), 0.0)

    def admits(self) -> bool:
        """Whether it may be sent to; each time that it may must end in ``settle``."""
        return time.monotonic() >= self._rest_until and self._breaker.admits()

    def settle(self, error: NotifyError | None) -> None:
        """Say how it went."""
        if error is None or not error.away:
            self._breaker.succeeded()
            return
        self._last = str(error)
        self._rest_until = max(self._rest_until, time.monotonic() + error.retry_after)
        self._breaker.failed()

    def _changed(self, is_open: bool) -> None:
        if is_open:
            log.warning("notify %s: %s; it is left alone for %.1f s", self._place, self._last, self.remaining)
        else:
            log.info("notify %s is back", self._place)
        self._on_open(is_open)


class Sender:
    """Empties an outbox, one notification after the other, until it is closed.

    Args:
        settings: how patiently.
        outbox: what is sent; a notice leaves it when it was taken, or refused for good.
        channel: where it goes; closed at the end.
        gate: says when.
        observe: called with ``sent`` or why it was set aside, and 1.
        on_attempt: called with ``ok`` or why not, and the seconds of each attempt.
    """

    def __init__(
        self,
        settings: NotifySettings,
        outbox: Outbox,
        channel: Channel,
        gate: Gate,
        *,
        observe: Callable[[str, int], None] = lambda outcome, count: None,
        on_attempt: Callable[[str, float], None] = lambda outcome, seconds: None,
    ) -> None:
        self._settings, self._outbox, self._channel, self._gate = settings, outbox, channel, gate
        self._observe, self._on_attempt = observe, on_attempt
        self._closed = threading.Event()
        self._failed: tuple[str, int] = ("", 0)
        self._thread = threading.Thread(target=self._run, name=f"notify-{settings.name}", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """End the thread; waits so long for an attempt that is under way."""
        self._closed.set()
        self._outbox.close()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                notice = self._outbox.take(_IDLE_SECONDS)
                if notice is not None and self._may_send():
                    self._send(notice)
        finally:
            self._channel.close()

    def _may_send(self) -> bool:
        """Wait until the gate lets something through; False: look again."""
        wait = self._gate.remaining
        if wait:  # with jitter: the flows of a fleet must not all come back at once
            self._closed.wait(wait * random.uniform(1.0, 1.0 + _JITTER))
            return False
        if not self._gate.admits():  # the thread of another shard tries
            self._closed.wait(_LOOK_SECONDS)
            return False
        return True

    def _send(self, notice: Notice) -> None:
        began, failure = time.monotonic(), None
        try:
            self._channel.send(notice)
        except NotifyError as error:
            failure = error
        except Exception as error:  # none of ours: it must neither end the thread nor be tried for ever
            # Its text is not shown: a library may name what it could not send.
            failure = NotifyError(f"{type(error).__name__} (unforeseen)", outcome="error", counts=True)
        self._on_attempt(failure.outcome if failure else "ok", time.monotonic() - began)
        self._gate.settle(failure)
        if failure is None:
            self._outbox.settle(notice)
            self._observe("sent", 1)
        elif not failure.passes or self._too_often(notice, failure):
            text = "notify %s: %s is set aside: %s (%s)"
            log.error(text, self._settings.place, notice.id, failure, notice.text)
            self._outbox.settle(notice)
            self._observe(f"refused_{failure.outcome}", 1)

    def _too_often(self, notice: Notice, failure: NotifyError) -> bool:
        """Whether the receiver has failed on this very notification as often as it may."""
        if not failure.counts:
            return False
        id_, count = self._failed
        self._failed = (notice.id, count + 1 if id_ == notice.id else 1)
        return self._failed[1] >= self._settings.attempts
