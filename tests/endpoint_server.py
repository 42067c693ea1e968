"""A model behind HTTP on this machine, which answers with the features it was sent, or as a test wants it to."""

import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from servers import Certificates


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "EndpointServer"

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((dict(self.headers), self.body["input_data"]))
            self.server.peers.add(self.client_address)
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
            react = self.server.script.pop(0) if self.server.script else self.server.usual
        try:
            react(self)
        except OSError:  # the client has gone
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def send(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


React = Callable[[Handler], None]


class EndpointServer(ThreadingHTTPServer):
    """Reacts to each request with the next of ``script``, and with ``usual`` when that is empty."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, certificates: Certificates | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.released = threading.Lock(), threading.Event()
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.peers: set[Any] = set()
        self.script: list[React] = []
        self.usual: React = echo
        self.under_way = self.most_under_way = 0
        self.host = "127.0.0.1"
        if certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.server_cert, certificates.server_key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.host = "localhost"
        self.url = f"{'https' if certificates else 'http'}://{self.host}:{self.server_address[1]}/score"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def rows(self) -> list[int]:
        """Of each request."""
        return [len(body["data"]) for _, body in self.requests]

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or refuses the certificate, is no news."""


def echo(handler: Handler) -> None:
    handler.send(200, {"outputs": handler.body["input_data"]["data"]})


def status(code: int, body: Any = b"", **headers: str) -> React:
    return lambda handler: handler.send(code, body, **headers)


def says(body: Any) -> React:
    return status(200, body)


def hang(handler: Handler) -> None:
    """No answer until the test is over."""
    handler.server.released.wait(30)
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def half(handler: Handler) -> None:
    """The connection ends in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"outputs": [[')
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte of the body each 50 ms, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.released.wait(0.05):
        handler.wfile.write(b" ")


def drip_headers(handler: Handler) -> None:
    """The same before the body begins."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.released.wait(0.05):
        handler.wfile.write(b"x")


def flood(handler: Handler) -> None:
    """A body without an end."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while not handler.server.released.is_set():
        handler.wfile.write(b"[" * 65_536)


def at_most(rows: int) -> React:
    """413 for more rows."""

    def react(handler: Handler) -> None:
        data = handler.body["input_data"]["data"]
        (echo if len(data) <= rows else status(413))(handler)

    return react


def slowly(seconds: float) -> React:
    def react(handler: Handler) -> None:
        time.sleep(seconds)
        echo(handler)

    return react
