"""Everything a run needs, in one folder: broker, proxies, lake, database, publisher, configuration, flow."""

import json
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from servers import Mosquitto

from chaos import ledger
from chaos.databases import Database
from chaos.disk import Disk
from chaos.flow import Flow
from chaos.lakes import Lake
from chaos.processes import end, spawn
from chaos.proxy import Proxy
from chaos.stream import TOPICS

_CONFIG: Final = """\
[run]
state = "{disk}/state"
epoch_seconds = {epoch_seconds}
shards = 3
recovery_partitions = 2

[mqtt]
port = {port}
topics = {topics}
client_id = "chaos"

{lake}max_file_age_seconds = {file_seconds}

{sql}
[[fleet]]
match = "*"
cell_type = "lg-hg2"
capacity_ah = 3.0
"""


class Broker(Mosquitto):
    """Mosquitto with its sessions on disk, which can also be paused."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(folder, persistence=True)

    def pause(self) -> None:
        """SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class World:
    """The systems of one scenario, all running; the flow is not started yet.

    The recovery store is on a disk of its own.
    """

    def __init__(
        self,
        folder: Path,
        lake: Callable[[Path], Lake],
        database: Callable[[Path], Database],
        *,
        epoch_seconds: float,
        file_seconds: float,
        workers: int,
    ) -> None:
        self.folder, self.epoch_seconds = folder, epoch_seconds
        self.disk = Disk(folder / "disk")
        self.lake, self.database = lake(folder), database(folder)
        self.broker = Broker(folder / "mosquitto")
        self.broker_proxy = Proxy(self.broker.port)
        self.config = folder / "voltmill.toml"
        text = _CONFIG.format(
            disk=self.disk.folder,
            port=self.broker_proxy.port,
            topics=json.dumps(TOPICS),
            lake=self.lake.config,
            sql=self.database.config,
            epoch_seconds=epoch_seconds,
            file_seconds=file_seconds,
        )
        self.config.write_text(text)
        self.flow = Flow(folder, self.config, workers)
        self.ledger = folder / "ledger"
        self.ledger.mkdir()
        self._publisher: subprocess.Popen[bytes] | None = None
        self._compaction: subprocess.Popen[bytes] | None = None

    def publish(self, rate: float, seed: int) -> None:
        """Start the publisher; its connection goes to the broker, past the proxy."""
        arguments = ["-m", "chaos.ledger", str(self.ledger), str(self.broker.port), f"{rate:g}", str(seed)]
        tests = Path(__file__).parent.parent
        self._publisher = spawn(arguments, self.folder / "publisher.log", cwd=tests)

    @property
    def published(self) -> ledger.Progress:
        """How far the publisher is."""
        return ledger.progress(self.ledger)

    def stop_publishing(self) -> int:
        """SIGTERM to the publisher; it ends when the broker has everything. Its status."""
        assert self._publisher is not None
        self._publisher.send_signal(signal.SIGTERM)
        return self._publisher.wait(300)

    def start_compaction(self) -> None:
        """Start ``voltmill compact`` over all days, today included."""
        tomorrow = datetime.now(UTC).date() + timedelta(days=2)
        arguments = ["-m", "voltmill.flows.cli", "compact", "-c", str(self.config), "--before", str(tomorrow)]
        self._compaction = spawn(arguments, self.folder / "compaction.log", cwd=self.folder)

    def kill_compaction(self) -> None:
        """kill -9 it, if it still runs."""
        end(self._compaction)

    def compact(self) -> int:
        """Run a whole compaction; its status."""
        self.start_compaction()
        assert self._compaction is not None
        return self._compaction.wait(300)

    def close(self) -> None:
        """End everything."""
        end(self._compaction)
        end(self._publisher)
        self.flow.close()
        self.broker_proxy.close()
        self.broker.stop()
        self.database.close()
        self.lake.close()
        self.disk.close()
