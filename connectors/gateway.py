"""The gateway's sink: takes ``RAW`` batches into the store from which the sender feeds IoT Hub.

**Nothing is lost.** A batch that is taken is on disk. The source acknowledges its messages when the epoch
is durable, thus after that, so whatever happens in between comes again and is recognised
(``gateway_store``). While the store is full, or its disk is, ``write_batch`` does not return: nothing more
is read or acknowledged, and the site's broker keeps what comes.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from voltmill.connectors.gateway_store import GatewayStore, Message, StoreFull
from voltmill.connectors.outage import Patience
from voltmill.connectors.pack import entry

#: The one partition: a SQLite file has one writer.
PART = "gateway"


class GatewayPartition(StatefulSinkPartition[pa.RecordBatch, None]):
    """Puts batches into the store."""

    def __init__(self, store: GatewayStore, patience: Patience, on_stored: Callable[[int, int], None]) -> None:
        self._store, self._patience, self._on_stored = store, patience, on_stored

    def write_batch(self, items: list[pa.RecordBatch]) -> None:
        """Store them; waits while there is no room."""
        for batch in items:
            arrived = messages(batch)
            new = self._patience.call(lambda arrived=arrived: self._store.put(arrived), _passes)  # type: ignore[misc]
            self._on_stored(new, len(arrived) - new)

    def snapshot(self) -> None:
        """Nothing is kept here: the store is durable by itself."""
        self._store.end_epoch()


class GatewaySink(FixedPartitionedSink[pa.RecordBatch, None]):
    """Takes keyed ``RAW`` batches into a store; the key does not matter.

    Guarantee: each message is stored exactly once, wherever the process is killed.

    Args:
        store: where to.
        patience: how long a store without room is waited for.
        on_stored: called with how many messages of a batch were new, and how many were stored already.
    """

    def __init__(
        self,
        store: GatewayStore,
        *,
        patience: Patience,
        on_stored: Callable[[int, int], None] = lambda new, repeated: None,
    ) -> None:
        self._store, self._patience, self._on_stored = store, patience, on_stored

    def list_parts(self) -> list[str]:
        """The one."""
        return [PART]

    def part_fn(self, item_key: str) -> int:
        """The one."""
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> GatewayPartition:
        """The store's end of the stream."""
        return GatewayPartition(self._store, self._patience, self._on_stored)


def messages(batch: pa.RecordBatch) -> list[Message]:
    """The rows of a ``RAW`` batch as they are stored."""
    times = batch.column("ingest_time").cast(pa.int64()).to_numpy(zero_copy_only=False) * 1e-6
    columns = (batch.column(name).to_pylist() for name in ("source_partition", "source_offset", "topic", "payload"))
    found = []
    for part, number, topic, payload, at in zip(*columns, np.asarray(times).tolist(), strict=True):
        made = entry(topic or "", payload)
        digest = hashlib.blake2b(made, digest_size=8).digest()
        found.append(Message(part, number, int.from_bytes(digest, "little", signed=True), at, made))
    return found


def _passes(error: Exception) -> bool:
    """No room, a full disk, a disk that does not answer: another moment may be better."""
    return isinstance(error, StoreFull)
