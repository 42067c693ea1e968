"""Where events wait for the flow: bounded in messages and bytes, handed on as whole batches.

The reader's thread adds, the worker's thread takes. A batch is due when it is full, or when its first event has
waited for the linger time. An event is in one batch with all its messages, so the place after a batch is one between
two events.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from voltmill.connectors.iothub_events import Event
from voltmill.connectors.iothub_settings import IotHubSettings


class Inbox:
    """Collects the events of one partition.

    Args:
        settings: the limits.
        clock: monotonic seconds.
    """

    def __init__(self, settings: IotHubSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._linger = settings.linger_ms / 1000
        self._clock = clock
        self._room = threading.Condition()
        self._closed = False
        self._events: deque[tuple[float, Event]] = deque()
        self._messages = 0
        self._bytes = 0

    @property
    def messages(self) -> int:
        """Messages that wait."""
        return self._messages

    def add(self, event: Event) -> bool:
        """Take an event as soon as there is room; whether it was taken: not when the inbox is closed."""
        with self._room:
            self._room.wait_for(self._has_room)
            if self._closed:
                return False
            self._events.append((self._clock(), event))
            self._messages += len(event.rows)
            self._bytes += event.size
            return True

    def _has_room(self) -> bool:
        limits = self._settings
        full = self._messages >= limits.max_queue_messages or self._bytes >= limits.max_queue_bytes
        return self._closed or not full

    def close(self) -> None:
        """Take no more, and let no one wait."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def take(self) -> list[Event]:
        """The next batch if one is due."""
        with self._room:
            if self._due_in() > 0:
                return []
            taken: list[Event] = []
            messages = size = 0
            while self._events:
                event = self._events[0][1]
                messages += len(event.rows)
                size += event.size
                over = messages > self._settings.max_batch_rows or size > self._settings.max_batch_bytes
                if taken and over:
                    break
                self._events.popleft()
                self._messages -= len(event.rows)
                self._bytes -= event.size
                taken.append(event)
            self._room.notify_all()
            return taken

    def due_in(self) -> float:
        """Seconds until ``take`` should be tried again."""
        with self._room:
            return self._due_in()

    def _due_in(self) -> float:
        if not self._events:
            return self._linger
        if self._messages >= self._settings.max_batch_rows or self._bytes >= self._settings.max_batch_bytes:
            return 0.0
        return max(0.0, self._events[0][0] + self._linger - self._clock())
