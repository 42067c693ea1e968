"""A receiver of alerts on this machine, over HTTP or HTTPS, that reacts as a test wants it to."""

import json
from typing import Any

from scripted_http import Handler, ScriptedServer, hang, hang_up, status
from servers import Certificates

__all__ = ["Handler", "Receiver", "hang", "hang_up", "status", "taken_then_cut"]


class Receiver(ScriptedServer):
    """``taken`` are the events that it said yes to."""

    def __init__(self, certificates: Certificates | None = None, port: int = 0) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.taken: list[dict[str, Any]] = []
        super().__init__(status(204), certificates, port)
        self.place, self.url = self.address, f"{self.origin}/hook"

    def note(self, handler: Handler) -> None:
        self.requests.append((handler.command, handler.path, dict(handler.headers), handler.body))

    def accepted(self, handler: Handler) -> None:
        if handler.command == "POST":
            with self.changed:
                self.taken.append(json.loads(handler.body))
                self.changed.notify_all()

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


def taken_then_cut(handler: Handler) -> None:
    """It has the event, and the connection is lost before it can say so."""
    handler.server.accepted(handler)
    handler.close_connection = True
