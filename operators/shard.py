"""shard: telemetry in, the same rows keyed by shard out.

The shard of a device is its stable hash modulo the number of shards, so every row of a device comes
to the same state, on whichever worker that lives. The number is part of the recovery format: the
flow writes it into its step ids, and a store made for another number is refused.
"""

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import Stream, operator
from bytewax.operators import KeyedStream

from voltmill.kernels.hashing import shard_order
from voltmill.operators.table import hashes_of


def shard_names(shards: int) -> list[str]:
    """The keys: two digits or more, so that they sort as numbers.

    Example:
        >>> shard_names(3)
        ['00', '01', '02']
    """
    return [f"{k:02d}" for k in range(shards)]


def split(batch: pa.RecordBatch, shards: int) -> list[tuple[int, pa.RecordBatch]]:
    """The rows by shard, in their order; shards without rows are left out."""
    if shards == 1:
        return [(0, batch)]
    hashes = hashes_of(batch.column("device_id"))
    order, starts = np.empty(len(hashes), np.int64), np.empty(shards + 1, np.int64)
    shard_order(hashes, shards, order, starts)
    turned = batch.take(pa.array(order))
    ends = starts[1:] - starts[:-1]
    return [(k, turned.slice(starts[k], ends[k])) for k in range(shards) if ends[k]]


@operator
def shard(step_id: str, up: Stream[pa.RecordBatch], *, shards: int) -> KeyedStream[pa.RecordBatch]:
    """Key the rows by shard.

    Args:
        step_id: Unique id of the step.
        up: ``TELEMETRY`` batches.
        shards: How many shards there are, from 1; fixed for the life of a recovery store.

    Returns:
        ``(key, batch)`` with keys as in ``shard_names``; the rows of a device stay in order.
    """
    names = shard_names(shards)

    def keyed(batch: pa.RecordBatch) -> list[tuple[str, pa.RecordBatch]]:
        return [(names[k], part) for k, part in split(batch, shards)]

    return op.flat_map("split", up, keyed)
