"""A receiver of alerts on this machine, over HTTP or HTTPS, that reacts as a test wants it to."""

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from servers import Certificates


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Receiver"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.changed:
            self.server.requests.append((self.command, self.path, dict(self.headers), body))
            react = self.server.script.pop(0) if self.server.script else self.server.usual
            self.server.changed.notify_all()
        try:
            react(self)
        except OSError:  # the client has gone
            self.close_connection = True

    do_OPTIONS = do_POST

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        if 200 <= status < 300 and self.command == "POST":
            with self.server.changed:
                self.server.taken.append(json.loads(self.server.requests[-1][3]))
                self.server.changed.notify_all()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


React = Callable[[Handler], None]


class Receiver(ThreadingHTTPServer):
    """Reacts to each request with the next of ``script``, and with ``usual`` when that is empty."""

    daemon_threads = True

    def __init__(self, certificates: Certificates | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.changed, self.released = threading.Condition(), threading.Event()
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.taken: list[dict[str, Any]] = []
        self.script: list[React] = []
        self.usual: React = status(204)
        self.host = "127.0.0.1"
        if certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.server_cert, certificates.server_key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.host = "localhost"
        self.place = f"{self.host}:{self.server_address[1]}"
        self.url = f"{'https' if certificates else 'http'}://{self.place}/hook"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def ids(self) -> list[str]:
        """Of the events that were taken, in their order."""
        with self.changed:
            return [event["id"] for event in self.taken]

    def await_ids(self, count: int, seconds: float = 30.0) -> list[str]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= count, seconds), (self.taken, self.requests)
        return self.ids()

    def await_requests(self, count: int, seconds: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, seconds), self.requests

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or refuses the certificate, is no news."""


def status(code: int, body: bytes = b"", **headers: str) -> React:
    return lambda handler: handler.send(code, body, **headers)


def hang(handler: Handler) -> None:
    """No answer until the test is over."""
    handler.server.released.wait(30)
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def taken_then_cut(handler: Handler) -> None:
    """It has the event, and the connection is lost before it can say so."""
    with handler.server.changed:
        handler.server.taken.append(json.loads(handler.server.requests[-1][3]))
    handler.close_connection = True
