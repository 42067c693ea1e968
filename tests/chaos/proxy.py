"""A TCP proxy that can be cut, blackholed, slowed and made to drop connections; two threads a connection."""

import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from voltmill.flows.broker import free_port

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16
_JOIN_SECONDS: Final = 10.0


class Proxy:
    """Passes connections on to a port of the loopback; ``port`` is its own, and stays the same."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._delay = 0.0
        self._open = threading.Event()
        self._lost: list[threading.Event] = []
        self.restore()

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        self._end(lambda: True)

    def blackhole(self) -> None:
        """Take connections and pass nothing on, as a firewall does that drops packets."""
        self._open.clear()

    def lose(self) -> None:
        """Pass nothing on, as ``blackhole``, but for ever: after ``restore`` only new connections work."""
        self._open.clear()
        self._lost.append(self._open)

    def delay(self, seconds: float) -> None:
        """Hold every chunk back for so long."""
        self._delay = seconds

    def drop(self, share: float, random_: random.Random) -> None:
        """End some of the connections."""
        self._end(lambda: random_.random() < share)

    def restore(self) -> None:
        """Pass everything on again; what ``blackhole`` held back is passed on now."""
        self._delay = 0.0
        if self._open in self._lost:
            self._open = threading.Event()
        self._open.set()
        if self._listener is None:
            self._listener = socket.create_server((_HOST, self.port), backlog=128)
            self._start(self._accept, self._listener)

    def close(self) -> None:
        """End it."""
        self.cut()
        for gate in [*self._lost, self._open]:
            gate.set()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=work, args=arguments, name=f"proxy-{self._target}", daemon=True))
        self._threads[-1].start()

    def _end(self, chosen: Callable[[], bool]) -> None:
        """Shut connections down; their threads close them."""
        with self._lock:
            for one in [one for one in self._sockets if chosen()]:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:  # its peer was quicker
                    continue

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed by ``cut``
                return
            with self._lock:
                self._sockets.add(client)
            self._start(self._serve, client, listener, self._open)

    def _serve(self, client: socket.socket, listener: socket.socket, gate: threading.Event) -> None:
        with client:
            try:
                gate.wait()
                if self._listener is not listener:
                    return  # cut in the meantime
                with socket.create_connection((_HOST, self._target)) as server:
                    self._join(client, server, gate)
            except OSError:  # the server is not there: neither are we
                return
            finally:
                with self._lock:
                    self._sockets.discard(client)

    def _join(self, client: socket.socket, server: socket.socket, gate: threading.Event) -> None:
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._pump, args=(server, client, gate), daemon=True)
        back.start()
        self._pump(client, server, gate)
        back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        """One direction; a side that ends its sending may still receive, as TCP has it."""
        try:
            while data := source.recv(_CHUNK):
                gate.wait()
                if self._delay:
                    time.sleep(self._delay)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one of the two is gone: so is the other
            for one in (source, sink):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
