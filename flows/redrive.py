"""redrive: chooses dead letters that can be taken by now, and sends them off once.

Letters of stage ``decode`` whose payload decodes under the present configuration go into the spool, from
which the live flow takes them (``connectors/redrive.py``). Letters of stage ``sql`` are rows that the
database refused: they are stored here and now, and the spool only says that they were.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from voltmill.connectors.letters import NEVER, Index
from voltmill.connectors.outage import Patience
from voltmill.connectors.spool import SPOOLED, SpoolFile, file_name
from voltmill.connectors.sql import SqlTable
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.dead_letters import DeadLetters, Filter, Found, decode_letters, decoder
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, PREDICTION_KEY, TIME

#: Bytes, compressed, that end a spool file: what the command holds in memory at most.
_FILE_BYTES: Final = 64 << 20
#: How long a database that is away is waited for, s.
_DATABASE_SECONDS: Final = 5.0

Judge = Callable[[pa.RecordBatch], tuple[NDArray[np.bool_], list[str]]]
"""Which letters can be taken, and for each of the others why not."""


@dataclass
class Outcome:
    """What a redrive did, or would do."""

    chosen: int = 0
    """Letters sent off."""
    before: int = 0
    """Letters that match and were redriven before, or are equal to one that was."""
    refused: Counter[str] = field(default_factory=Counter)
    """Letters that cannot be taken, by reason; they stay as they are."""
    files: list[str] = field(default_factory=list)
    """The spool files."""


def redrive(config: Config, wanted: Filter, *, limit: int = 0, dry_run: bool = False) -> Outcome:
    """Redrive the letters that match; each letter once, however often and by how many this is called.

    Args:
        config: As the live flow has it, or will have it when it takes the letters.
        wanted: Which letters; its stage is ``decode`` or ``sql``.
        limit: Letters at most; 0: all.
        dry_run: Only count; letters of stage ``sql`` all count as chosen then.

    Raises:
        ConfigError: The stage has nothing to redrive, or there is no letter of an id.
        LakeError: The lake cannot be read or written.
        SqlError: The database cannot be used.
    """
    letters = DeadLetters(config)
    _check(letters, wanted)
    run = _Run(letters, limit, dry_run)
    if wanted.stage == "decode":
        run.choose(wanted, _by_decoding(config))
    elif dry_run:
        run.choose(wanted, lambda rows: (np.ones(rows.num_rows, np.bool_), []))
    else:
        table = SqlTable(config.sql, patience=Patience(f"the database {config.sql.place}", seconds=_DATABASE_SECONDS))
        table.prepare()
        writer = table.writer()
        try:
            run.choose(wanted, lambda rows: _by_storing(rows, writer), storing=True)
        finally:
            writer.close()
    return run.outcome


def _check(letters: DeadLetters, wanted: Filter) -> None:
    if wanted.stage not in ("decode", "sql"):
        raise ConfigError(
            f"--stage {wanted.stage}: only letters of decode and sql can be redriven; those of estimate hold no "
            "message, and voltmill replay makes their predictions anew"
        )
    if not wanted.ids:
        return
    found = {id_ for batch in letters.read(Filter(stage=wanted.stage, ids=wanted.ids)) for id_ in batch.ids}
    if missing := sorted(wanted.ids - found):
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise ConfigError(f"there is no dead letter {missing[0]} of stage {wanted.stage}{more}")


class _Run:
    """One call: what was chosen so far."""

    def __init__(self, letters: DeadLetters, limit: int, dry_run: bool) -> None:
        self.outcome = Outcome()
        self._letters, self._limit, self._dry_run = letters, limit, dry_run
        self._chosen = Index()
        self._now = datetime.now(UTC)
        self._file = SpoolFile()

    def choose(self, wanted: Filter, judge: Judge, *, storing: bool = False) -> None:
        """Go through the letters; ``storing``: to judge one is to store it, so no more are judged than are wanted."""
        for found in self._letters.read(wanted):
            rows, ids = self._fresh(found)
            while ids and self._room():
                part = min(len(ids), self._room()) if storing else len(ids)
                mask, reasons = judge(rows.slice(0, part))
                mask[np.flatnonzero(mask)[self._room() :]] = False
                self.outcome.refused.update(reasons)
                self._add(rows.slice(0, part).filter(pa.array(mask)), [ids[k] for k in np.flatnonzero(mask).tolist()])
                rows, ids = rows.slice(part), ids[part:]
            if not self._room():
                break
        self._publish()

    def _room(self) -> int:
        """How many letters are still wanted."""
        return self._limit - self.outcome.chosen if self._limit else sys.maxsize

    def _fresh(self, found: Found) -> tuple[pa.RecordBatch, list[str]]:
        """The letters that were never redriven, each once."""
        unseen = (found.redriven == NEVER) & (self._chosen.find(found.ids) == NEVER)
        first = {id_: k for k, id_ in reversed(list(enumerate(found.ids)))}
        rows = [k for k, id_ in enumerate(found.ids) if unseen[k] and first[id_] == k]
        self.outcome.before += found.rows.num_rows - len(rows)
        return found.rows.take(pa.array(rows, pa.int64())), [found.ids[k] for k in rows]

    def _add(self, rows: pa.RecordBatch, ids: list[str]) -> None:
        self.outcome.chosen += len(ids)
        self._chosen.add(ids, 0)
        if self._dry_run or not ids:
            return
        columns: dict[str, Any] = {name: rows[name] for name in DEAD_LETTER.names}
        columns |= {"letter_id": pa.array(ids), "redriven_at": pa.repeat(pa.scalar(self._now, TIME), len(ids))}
        self._file.add(pa.RecordBatch.from_arrays([columns[name] for name in SPOOLED.names], schema=SPOOLED))
        if self._file.nbytes >= _FILE_BYTES:
            self._publish()

    def _publish(self) -> None:
        """Store the file under the next number, without what another call has sent off in the meantime."""
        rows, data = self._file.rows, self._file.finish()
        self._file = SpoolFile()
        while rows:
            before = len(self._letters.spooled)
            number = self._letters.refresh()
            if len(self._letters.spooled) != before:
                kept = self._without_spooled(data)
                self.outcome.chosen -= rows - kept.rows
                self.outcome.before += rows - kept.rows
                rows, data = kept.rows, kept.finish()
            if rows and self._letters.spool.add(data, number):
                self.outcome.files.append(file_name(number))
                return

    def _without_spooled(self, data: pa.Buffer) -> SpoolFile:
        kept = SpoolFile()
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            for batch in file.iter_batches(2048, use_threads=False):
                fresh = self._letters.spooled.find(batch["letter_id"].to_pylist()) == NEVER
                kept.add(batch.filter(pa.array(fresh)).cast(SPOOLED))
        return kept


def _by_decoding(config: Config) -> Judge:
    decode = decoder(config)

    def judge(rows: pa.RecordBatch) -> tuple[NDArray[np.bool_], list[str]]:
        telemetry, refused = decode_letters(rows, decode)
        mask = np.zeros(rows.num_rows, np.bool_)
        if telemetry is not None:
            mask[telemetry["source_offset"].to_numpy()] = True
        why = (
            {}
            if refused is None
            else dict(zip(*(refused[n].to_pylist() for n in ("source_offset", "reason")), strict=True))
        )
        return mask, [why.get(row, "empty") for row in np.flatnonzero(~mask).tolist()]

    return judge


def _by_storing(rows: pa.RecordBatch, writer: Any) -> tuple[NDArray[np.bool_], list[str]]:
    """Store what the letters hold, and keep it safe from a loss of power, before anything says that it is stored."""
    parsed = [_prediction(payload) for payload in rows["payload"].to_pylist()]
    good = [row for row in parsed if row is not None]
    refused = writer.write([pa.RecordBatch.from_pylist(good, schema=PREDICTION)]) if good else []
    writer.durable()
    messages = {tuple(one.row[name][0].as_py() for name in PREDICTION_KEY): one.message for one in refused}
    why = [None if row is None else messages.get(tuple(row[name] for name in PREDICTION_KEY), "") for row in parsed]
    return np.array([one == "" for one in why], np.bool_), [
        "not_a_prediction" if w is None else w for w in why if w != ""
    ]


def _prediction(payload: bytes | None) -> dict[str, Any] | None:
    """The row that a letter of stage ``sql`` holds; None if it is no prediction."""
    try:
        row = msgspec.json.decode(payload or b"", type=dict[str, Any])
        row["event_time"] = datetime.fromisoformat(row["event_time"])
        made = pa.RecordBatch.from_pylist([row], schema=PREDICTION)
        made.validate(full=True)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None
    absent = (made[field.name].null_count for field in PREDICTION if not field.nullable)
    return None if any(absent) else row
