"""A time limit for a client library that has none: its TCP connection is cut when a call takes too long.

A server that is stopped, or hangs, still has a kernel that acknowledges what is sent to it, so neither
keep-alives nor ``TCP_USER_TIMEOUT`` end the wait for its answer. libpq waits without a limit; its own cancel
request would wait for the same server. Shutting the socket down makes the call fail as if the server were gone.
"""

import os
import socket
import stat
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

#: One connection is opened at a time, so that it is known whose a new socket is.
_opening = threading.Lock()


class TimeLimit:
    """Knows the connections to a server that were opened inside ``opening``, and cuts no others.

    Args:
        port: its TCP port.
        others: ports that it may send a client on to.
    """

    def __init__(self, port: int, others: Container[int] = ()) -> None:
        self._port, self._others = port, others
        self._ours: set[Any] = set()

    @contextmanager
    def opening(self, seconds: float) -> Iterator[None]:
        """The body opens a connection; if it takes longer than ``seconds``, that connection is cut."""
        with _opening:
            before = {copy.getsockname() for copy in self._connections()}
            with _after(seconds, lambda: self._cut(lambda name: name not in before)):
                yield
            self._ours = {copy.getsockname() for copy in self._connections()} - before

    @contextmanager
    def calling(self, seconds: float) -> Iterator[None]:
        """The body uses what was opened; if it takes longer than ``seconds``, the connection is cut."""
        with _after(seconds, lambda: self._cut(lambda name: name in self._ours)):
            yield

    def _connections(self) -> Iterator[socket.socket]:
        """A handle of each connection of this process to the server."""
        return (copy for copy in _connections() if (port := _peer_port(copy)) == self._port or port in self._others)

    def _cut(self, chosen: Callable[[Any], bool]) -> None:
        for copy in self._connections():
            if chosen(copy.getsockname()):
                try:
                    copy.shutdown(socket.SHUT_RDWR)
                except OSError:  # it is gone already
                    continue


@contextmanager
def _after(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Do something if the body takes longer than ``seconds``."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connections() -> Iterator[socket.socket]:
    """A handle of each TCP connection of this process; it is closed when the next one is taken."""
    for name in os.listdir("/dev/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed in the meantime, by its owner
            continue
        with copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6):
                yield copy


def _peer_port(copy: socket.socket) -> int:
    try:
        port: int = copy.getpeername()[1]
    except OSError:  # it listens, or is not connected yet
        return 0
    return port
