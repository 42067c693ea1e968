"""What the stateful operators share: one state object a shard, one call of it a batch."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import bytewax.operators as op
import pyarrow as pa
from bytewax.operators import KeyedStream, StatefulBatchLogic

W_co = TypeVar("W_co", covariant=True)
W = TypeVar("W")


class ShardState(Protocol[W_co]):
    """The state of one shard."""

    def apply(self, batch: pa.RecordBatch) -> W_co:
        """Take a batch in, give what comes of it."""

    def snapshot(self) -> tuple[Any, ...]:
        """Versioned builtins and bytes: a copy, from which a state can be made again."""


class _Logic(StatefulBatchLogic[pa.RecordBatch, W, Any]):
    def __init__(self, state: ShardState[W], observe: Callable[[float], None]) -> None:
        self._state, self._observe = state, observe

    def on_batch(self, values: list[pa.RecordBatch]) -> tuple[Iterable[W], bool]:
        began = time.perf_counter()
        out = [self._state.apply(batch) for batch in values]
        self._observe(time.perf_counter() - began)
        return out, StatefulBatchLogic.RETAIN

    def snapshot(self) -> Any:
        return self._state.snapshot()


def by_shard(
    step_id: str,
    up: KeyedStream[pa.RecordBatch],
    build: Callable[[tuple[Any, ...] | None], ShardState[W]],
    observe: Callable[[float], None],
) -> KeyedStream[W]:
    """Run each batch through the state of its shard.

    Args:
        step_id: Unique id of the step.
        up: Batches keyed by shard.
        build: Makes the state of a shard from its last snapshot, or a new one from None.
        observe: Called with the seconds that each call took.
    """
    return op.stateful_batch(step_id, up, lambda snapshot: _Logic(build(snapshot), observe))
