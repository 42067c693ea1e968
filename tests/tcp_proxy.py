"""A TCP proxy between a client and a server, to cut or to silence their connections."""

import select
import socket
import threading
import time


class TcpProxy:
    """Forwards connections to a port of the loopback.

    ``cut`` resets what is open. ``silence`` forwards nothing more, on old connections and on new ones,
    without closing any: what a lost route looks like. After ``heal`` only new connections work.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._dead: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._silent = False
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self) -> None:
        with self._lock:
            for pair in self._pairs:
                self._reset(pair)
            self._pairs.clear()

    def silence(self) -> None:
        with self._lock:
            self._silent = True
            self._dead += self._pairs
            self._pairs.clear()

    def heal(self) -> None:
        with self._lock:
            self._silent = False

    def close(self) -> None:
        self._closed = True
        self._thread.join()
        self._listener.close()
        for pair in self._pairs + self._dead:
            self._reset(pair)

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                waiting = [self._listener, *(side for pair in self._pairs for side in pair)]
                for ready in select.select(waiting, [], [], 0)[0]:
                    if ready is self._listener:
                        self._accept()
                    else:
                        self._forward(ready)
            time.sleep(0.001)

    def _accept(self) -> None:
        client = self._listener.accept()[0]
        pair = (client, socket.create_connection(("127.0.0.1", self._target)))
        (self._dead if self._silent else self._pairs).append(pair)

    def _forward(self, side: socket.socket) -> None:
        for pair in [pair for pair in self._pairs if side in pair]:
            other = pair[1] if side is pair[0] else pair[0]
            try:
                data = side.recv(1 << 16)
                other.sendall(data)
            except OSError:
                data = b""
            if not data:
                self._reset(pair)
                self._pairs.remove(pair)

    @staticmethod
    def _reset(pair: tuple[socket.socket, socket.socket]) -> None:
        for side in pair:
            side.close()
