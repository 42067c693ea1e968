"""An HTTP or HTTPS server on this machine that reacts to each request as a test wants it to."""

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from servers import Certificates


class Handler(BaseHTTPRequestHandler):
    """One connection. ``body`` is that of the request that is answered now."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any
    body: bytes

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(size)
        if len(self.body) < size:  # a client that was killed
            self.close_connection = True
            return
        react = self.server.arrived(self)
        try:
            react(self)
        except OSError:  # the client has gone
            self.close_connection = True
        finally:
            self.server.answered(self)

    do_GET = do_OPTIONS = do_POST

    def send(self, status: int, body: Any = b"", **headers: str) -> None:
        """Answer; what is not bytes is sent as JSON."""
        if 200 <= status < 300:
            self.server.accepted(self)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


React = Callable[[Handler], None]


class ScriptedServer(ThreadingHTTPServer):
    """Reacts to each request with the next of ``script``, and with ``usual`` when that is empty.

    Attributes:
        changed: held while what was received is changed; notified then.
        released: set when the test is over.
        peers: addresses of the clients' connections.
        address: name and port, the name that of the certificate.
        origin: scheme and address.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, usual: React, certificates: Certificates | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.changed, self.released = threading.Condition(), threading.Event()
        self.script: list[React] = []
        self.usual = usual
        self.peers: set[Any] = set()
        self.host = "127.0.0.1"
        if certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.server_cert, certificates.server_key)
            # The handshake is the connection's own thread's: one that hangs must not stop the others.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.host = "localhost"
        self.address = f"{self.host}:{self.server_address[1]}"
        self.origin = f"{'https' if certificates else 'http'}://{self.address}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def arrived(self, handler: Handler) -> React:
        """A request is here: note it, and say how to react."""
        with self.changed:
            self.peers.add(handler.client_address)
            self.note(handler)
            self.changed.notify_all()
            return self.script.pop(0) if self.script and handler.command != "GET" else self.usual

    def note(self, handler: Handler) -> None:
        """What a server keeps of a request; ``changed`` is held."""

    def accepted(self, handler: Handler) -> None:
        """It is about to be told that all is well."""

    def answered(self, handler: Handler) -> None:
        """The reaction is over."""

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or refuses the certificate, is no news."""


def status(code: int, body: Any = b"", **headers: str) -> React:
    return lambda handler: handler.send(code, body, **headers)


def hang(handler: Handler) -> None:
    """No answer until the test is over."""
    handler.server.released.wait(30)
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.close_connection = True
