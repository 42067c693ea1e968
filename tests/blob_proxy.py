"""A stand-in between the lake and Azurite that answers some requests itself, as Azure Storage does under load."""

import http.client
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ERROR = '<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'


@dataclass
class Refusal:
    """One answer instead of Azurite's."""

    status: int
    code: str
    headers: dict[str, str] = field(default_factory=dict)
    text: str = "No."
    method: str = "PUT"


class BlobProxy:
    """Passes requests on to a port of this machine, but for the refusals that stand in ``planned``, first in first."""

    def __init__(self, port: int) -> None:
        self.planned: deque[Refusal] = deque()
        self.seen: list[tuple[str, str]] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                with proxy._counted(self.command, self.path):
                    self._answer(*proxy._take(self.command, self.path, dict(self.headers), body, port))

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "keep-alive"):
                        self.send_header(name, value)
                told = {name.lower(): value for name, value in headers}
                length = told.get("content-length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_DELETE = do_HEAD = handle_one  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _counted(self, method: str, path: str) -> "_Counted":
        return _Counted(self, method, path)

    def _take(
        self, method: str, path: str, headers: dict[str, str], body: bytes, port: int
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        with self._lock:
            refusal = self.planned.popleft() if self.planned and self.planned[0].method == method else None
        if refusal:
            text = b"" if method == "HEAD" else _ERROR.format(code=refusal.code, text=refusal.text).encode()
            told = {"x-ms-error-code": refusal.code, "Content-Type": "application/xml"} | refusal.headers
            return refusal.status, list(told.items()), text
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Counted:
    def __init__(self, proxy: BlobProxy, method: str, path: str) -> None:
        self._proxy = proxy
        with proxy._lock:
            proxy.seen.append((method, path))

    def __enter__(self) -> None:
        with self._proxy._lock:
            self._proxy.under_way += 1
            self._proxy.most_under_way = max(self._proxy.most_under_way, self._proxy.under_way)

    def __exit__(self, *_: object) -> None:
        with self._proxy._lock:
            self._proxy.under_way -= 1
