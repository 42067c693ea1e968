"""A model behind HTTP on this machine, which answers with the features it was sent, or as a test wants it to."""

import json
import time
from typing import Any

from scripted_http import Handler, React, ScriptedServer, hang, hang_up, status
from servers import Certificates

__all__ = ["EndpointServer", "Handler", "React", "hang", "hang_up", "status"]


class EndpointServer(ScriptedServer):
    """Counts, beside the requests, how many are under way at once."""

    def __init__(self, certificates: Certificates | None = None) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.under_way = self.most_under_way = 0
        super().__init__(echo, certificates)
        self.url = f"{self.origin}/score"

    @property
    def rows(self) -> list[int]:
        """Of each request."""
        return [len(body["data"]) for _, body in self.requests]

    def note(self, handler: Handler) -> None:
        self.requests.append((dict(handler.headers), given(handler)))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

    def answered(self, handler: Handler) -> None:
        with self.changed:
            self.under_way -= 1


def given(handler: Handler) -> dict[str, Any]:
    """Names and values of the features."""
    found: dict[str, Any] = json.loads(handler.body)["input_data"]
    return found


def echo(handler: Handler) -> None:
    handler.send(200, {"outputs": given(handler)["data"]})


def says(body: Any) -> React:
    return status(200, body)


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
        data = given(handler)["data"]
        (echo if len(data) <= rows else status(413))(handler)

    return react


def slowly(seconds: float) -> React:
    def react(handler: Handler) -> None:
        time.sleep(seconds)
        echo(handler)

    return react
