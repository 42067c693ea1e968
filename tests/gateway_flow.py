"""A gateway in a process of its own, between two real brokers, or a broker and an HTTPS server."""

import json
import sqlite3
from pathlib import Path

from gateway_hubs import connection_string
from live_flow import Live

CONFIG = """
[run]
state = "{folder}/gateway-state"
epoch_seconds = 0.3
{run}

[mqtt]
port = {port}
topics = {topics}
client_id = "{client}"
max_batch_rows = 500

[gateway]
connection_string = "${{GATEWAY_CONNECTION_STRING}}"
transport = "{transport}"
ca_file = "{ca_file}"
store = "{store}"
retry_min_seconds = 0.1
retry_max_seconds = 0.5
{gateway}
"""


class Gateway(Live):
    """A gateway in a folder, which can be started again and again.

    Args:
        folder: for configuration, state, store and log.
        port: of the site's broker.
        ca_file: the authority that the hub's certificate comes from.
        server: the hub, as ``HostName`` says it.
        transport: the way to it.
        key: of the device.
        topics: topic filters.
        run: lines to put under ``[run]``.
        gateway: lines to put under ``[gateway]``.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        ca_file: str,
        *,
        server: str = "localhost",
        transport: str = "mqtt",
        login: str = "",
        topics: list[str] | None = None,
        run: str = "",
        gateway: str = "",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.ca_file, self.transport, self.gateway = ca_file, transport, gateway
        self.login = login or connection_string(server)
        self.store = folder / "gateway.db"
        super().__init__(folder, port, topics=topics, run=run)

    def configure(self, partitions: int = 1) -> None:
        text = CONFIG.format(
            folder=self.folder,
            port=self.port,
            topics=json.dumps(self.topics),
            client=f"{self.folder.name}-gateway",
            transport=self.transport,
            ca_file=self.ca_file,
            store=self.store,
            run=self.run,
            gateway=self.gateway,
        )
        self.config.write_text(text)

    def start(self, command: list[str] | None = None, **environ: str):  # type: ignore[no-untyped-def]
        command = command or ["voltmill.flows.cli", "run", "gateway", "-c", str(self.config)]
        return super().start(command, GATEWAY_CONNECTION_STRING=self.login, **environ)

    def waiting(self) -> int:
        """How many messages are in the store."""
        with sqlite3.connect(f"file:{self.store}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])
