"""The dead letters as they lie in the lake: read in order, each with its id, and which were redriven.

**The id of a letter is a digest of its stage, topic and payload**: of what decides which samples it
gives. So it is the same wherever the letter lies, before and after files are merged, and also when a
crash undid an epoch and the broker sent the message again; and letters that are equal are one, for
they hold one and the same message. Where content is not enough, the lineage is part of it: for a
letter of a message that was redriven and refused once more, which is a new one, and for a letter
without a payload.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_reader import NoFiles, read_batches
from voltmill.connectors.spool import Spool
from voltmill.connectors.store import LakeError
from voltmill.kernels.schema import DEAD_LETTER, REDRIVE

__all__ = ["ID_DIGITS", "NEVER", "Index", "letter_ids", "read_letters", "spooled"]

TABLE: Final = "dead_letters"
#: 80 bits: of ten million letters two have the same one with a chance of 1 to 10 ** 10.
ID_DIGITS: Final = 20
#: What ``Index.find`` gives for an id that it does not hold; else µs since 1970.
NEVER: Final = np.iinfo(np.int64).min

_ID: Final = f"S{ID_DIGITS}"
#: Letters may be large, up to ``decode.max_payload_bytes``.
_BATCH_ROWS: Final = 2048
_PENDING: Final = 65_536


def read_letters(lake: LakeSettings) -> Iterator[pa.RecordBatch]:
    """All dead letters of a lake, in batches of up to 2,048, each shard in order of arrival; none if there is no table.

    Raises:
        LakeError: a file that cannot be read, or is of another schema.
    """
    try:
        for batch in read_batches(lake, TABLE, batch_rows=_BATCH_ROWS):
            if missing := [name for name in DEAD_LETTER.names if name not in batch.schema.names]:
                raise LakeError(f"lake {lake.place}: {TABLE}: a file has no column {', '.join(missing)}")
            if batch.num_rows:
                yield batch.select(DEAD_LETTER.names).cast(DEAD_LETTER)
    except NoFiles:
        return


def letter_ids(letters: pa.RecordBatch) -> list[str]:
    """The id of each of some ``DEAD_LETTER`` rows.

    Example:
        >>> letter = {"payload": b"what?", "reason": "malformed_json", "detail": "", "stage": "decode", "topic": "a/b"}
        >>> letter |= {"source": "mqtt", "source_partition": "a/#", "source_offset": 7}
        >>> letter_ids(pa.RecordBatch.from_pylist([letter, letter | {"source_offset": 8}], schema=DEAD_LETTER))
        ['82d76cfee18c0c38f82f', '82d76cfee18c0c38f82f']
    """
    names = ("stage", "topic", "payload", "source", "source_partition", "source_offset")
    columns = (letters.column(name).to_pylist() for name in names)
    return [_id(*row) for row in zip(*columns, strict=True)]


def _id(stage: str, topic: str | None, payload: bytes | None, source: str, partition: str, offset: int) -> str:
    place: tuple[Any, ...] = () if payload is not None and source != REDRIVE else (source, partition, offset)
    digest = blake2b(msgspec.json.encode((stage, topic, *place)), digest_size=ID_DIGITS // 2)
    digest.update(b"\n")
    digest.update(payload or b"")
    return digest.hexdigest()


class Index:
    """Letters by id, each with a time: 28 bytes a letter.

    Example:
        >>> index = Index()
        >>> index.add(["00000000000000000001"], 5)
        >>> index.find(["00000000000000000001", "00000000000000000002"]) == [5, NEVER]
        array([ True,  True])
    """

    def __init__(self) -> None:
        self._ids: NDArray[np.bytes_] = np.empty(0, _ID)
        self._times = np.empty(0, np.int64)
        self._pending: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._ids) + len(self._pending)

    def add(self, ids: Iterable[str], time: int) -> None:
        """Add letters that are not in it yet."""
        self._pending.update(dict.fromkeys((id_.encode() for id_ in ids), time))
        if len(self._pending) >= _PENDING:
            self._settle()

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The time of each letter, or ``NEVER``."""
        wanted = np.array(ids, _ID)
        places = np.minimum(np.searchsorted(self._ids, wanted), max(len(self._ids) - 1, 0))
        times = np.full(len(wanted), NEVER)
        if len(self._ids):
            found = self._ids[places] == wanted
            times[found] = self._times[places[found]]
        for k, id_ in enumerate(wanted.tolist() if self._pending else ()):
            times[k] = self._pending.get(id_, times[k])
        return times

    def _settle(self) -> None:
        ids = np.concatenate([self._ids, np.array(list(self._pending), _ID)])
        times = np.concatenate([self._times, np.fromiter(self._pending.values(), np.int64, len(self._pending))])
        order = np.argsort(ids, kind="stable")
        self._ids, self._times, self._pending = ids[order], times[order], {}


def spooled(spool: Spool, numbers: Iterable[int], index: Index) -> None:
    """Add what stands in these files of the spool to an index, with the time it was redriven."""
    for number in numbers:
        with spool.open(number) as file:
            for batch in file.iter_batches(columns=["letter_id", "redriven_at"], use_threads=False):
                if batch.num_rows:  # one call wrote them all, at one time
                    index.add(batch["letter_id"].to_pylist(), batch["redriven_at"].cast(pa.int64())[0].as_py())
