"""Ledger against lake, dead letters and database, row by row.

What must hold, every message counted:

- A sample that the broker confirmed is in ``telemetry`` once without the bit DUPLICATE, with exactly the
  values of its payload; with the bit only as often as the publisher may have sent it again.
- What the broker did not confirm is there once or not at all.
- A broken message is in ``dead_letters`` as often as it was sent.
- Each row that was not refused has one prediction in the lake, and the same one in the database, once, or
  a dead letter of the stage sql.
- No file of the lake is hidden, set aside, unreadable or left over by a compaction.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from chaos.arrays import Bools, Ints, column, counted, differing, keys, places
from chaos.expected import Expected, expected
from chaos.ledger import Ledger
from voltmill.connectors.lake_files import visible
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, REFUSED, TELEMETRY, Quality
from voltmill.operators.event_time import parse_time

LOST, DOUBLED, CHANGED, FOREIGN, DISORDERED, LEFT_OVER = "lost", "doubled", "changed", "foreign", "disordered", "file"

#: Made on the way, so not part of a payload.
_MADE: Final = {"ingest_time", "source", "source_partition", "source_offset", "payload", "quality_bits"}
_EXAMPLES: Final = 5


class Finding(msgspec.Struct, frozen=True):
    """Rows that are not as they must be."""

    kind: str
    where: str
    count: int
    examples: list[str]


class Verdict(msgspec.Struct):
    """What was counted, and what was found to be wrong."""

    counts: dict[str, int]
    findings: list[Finding]

    def count(self, kind: str) -> int:
        """Number of rows of a kind of finding."""
        return sum(finding.count for finding in self.findings if finding.kind == kind)

    def find(self, kind: str, where: str, count: int, examples: list[str]) -> None:
        """Note a finding, if there is one."""
        if count:
            self.findings.append(Finding(kind, where, count, examples[:_EXAMPLES]))


def check(ledger_folder: Path, lake: Path, sql: pa.Table) -> Verdict:
    """Compare.

    Args:
        ledger_folder: What the publisher wrote.
        lake: A folder with all files of the lake.
        sql: Every row of the database, labels as text.
    """
    ledger = Ledger.load(ledger_folder)
    wanted = expected(ledger)
    verdict = Verdict({"messages": len(ledger.payload), "confirmed": int(ledger.confirmed.sum())}, [])
    _check_files(verdict, lake)
    telemetry = _read(lake, "telemetry", TELEMETRY)
    rows = _check_telemetry(verdict, wanted, telemetry)
    letters = _read(lake, "dead_letters", DEAD_LETTER)
    refused = _check_letters(verdict, wanted, letters)
    _check_predictions(verdict, wanted, rows, _read(lake, "predictions", PREDICTION), sql, refused)
    return verdict


def _check_files(verdict: Verdict, lake: Path) -> None:
    """After the last compaction each file counts, and none is half written or put aside."""
    files = [path for path in lake.rglob("*") if path.is_file()]
    names = [str(path.relative_to(lake)) for path in files]
    covered = sorted(set(names) - set(visible(names)))
    verdict.find(LEFT_OVER, "lake, merged and not removed", len(covered), covered)
    odd = [name for name in names if any(part.startswith((".", "_")) for part in Path(name).parts)]
    verdict.find(LEFT_OVER, "lake", len(odd), odd)
    broken = [str(path.relative_to(lake)) for path in files if path.suffix == ".parquet" and not _readable(path)]
    verdict.find(LEFT_OVER, "lake, unreadable", len(broken), broken)
    verdict.counts["files"] = len(files)


def _readable(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def _read(lake: Path, table: str, schema: pa.Schema) -> pa.Table:
    names = [str(path.relative_to(lake)) for path in (lake / table).rglob("*.parquet") if _readable(path)]
    files = [str(lake / name) for name in visible(names)]
    return ds.dataset(files, schema=schema, format="parquet").to_table() if files else schema.empty_table()


def _check_telemetry(verdict: Verdict, wanted: Expected, telemetry: pa.Table) -> pa.Table:
    """Check the archive; the rows that get predictions."""
    bits = column(telemetry, "quality_bits").cast(pa.int64()).to_numpy()
    found = keys(telemetry, wanted.devices, "seq")
    copy = (bits & Quality.DUPLICATE) != 0
    name = _namer(telemetry, "seq")
    singles, copies = counted(found[~copy], wanted.keys), counted(found[copy], wanted.keys)
    least, most = wanted.rows.least, wanted.rows.most
    example = _namer(wanted.telemetry, "seq")
    absent = (least > 0) & (singles == 0)
    verdict.find(LOST, "telemetry", int(absent.sum()), example(absent))
    short = ~absent & (singles + copies < least)
    verdict.find(LOST, "telemetry, a copy", int((least - singles - copies)[short].sum()), example(short))
    twice = singles > 1
    verdict.find(DOUBLED, "telemetry", int((singles - 1)[twice].sum()), example(twice))
    again = ~twice & (singles + copies > most)
    verdict.find(DOUBLED, "telemetry, flagged", int((singles + copies - most)[again].sum()), example(again))
    at = places(found, wanted.keys)
    verdict.find(FOREIGN, "telemetry", int((at < 0).sum()), name(at < 0))
    changed = _changed(telemetry, wanted.telemetry, at, [n for n in TELEMETRY.names if n not in _MADE])
    verdict.find(CHANGED, "telemetry", int(changed.sum()), name(changed))
    disordered = ((bits & int(REFUSED)) != 0) & ~copy
    verdict.find(DISORDERED, "telemetry", int(disordered.sum()), name(disordered))
    verdict.counts |= {
        "samples": len(wanted.keys),
        "archived": len(telemetry),
        "flagged_duplicate": int(copy.sum()),
        "sent_twice": int((most > 1).sum()),
    }
    return telemetry.filter(pa.array((bits & int(REFUSED)) == 0))


def _changed(table: pa.Table, wanted: pa.Table, at: Ints, names: list[str]) -> Bools:
    """Which rows of a table differ from those of another at the places ``at``; not where that is -1."""
    differ = np.zeros(len(at), np.bool_)
    here, there = pa.array(np.flatnonzero(at >= 0)), pa.array(at[at >= 0])
    for name in names:
        differ[at >= 0] |= differing(column(table, name).take(here), column(wanted, name).take(there))
    return differ


def _check_letters(verdict: Verdict, wanted: Expected, letters: pa.Table) -> pa.Table:
    """Check the dead letters of ``decode``; those of the database."""
    stages = column(letters, "stage")
    found = Counter(column(letters.filter(pc.equal(stages, "decode")), "payload").to_pylist())
    lost = {p: least - found[p] for p, (least, _) in wanted.letters.items() if found[p] < least}
    doubled = {p: found[p] - most for p, (_, most) in wanted.letters.items() if found[p] > most}
    foreign = {p: n for p, n in found.items() if p not in wanted.letters}
    for kind, which in ((LOST, lost), (DOUBLED, doubled), (FOREIGN, foreign)):
        verdict.find(kind, "dead_letters", sum(which.values()), [repr(payload[:80]) for payload in which])
    by_sql = letters.filter(pc.equal(stages, "sql"))
    other = letters.filter(pc.invert(pc.is_in(stages, pa.array(["decode", "sql"]))))
    verdict.find(FOREIGN, "dead_letters, stage", len(other), column(other, "detail").to_pylist())
    verdict.counts |= {"dead_letters": found.total(), "sql_dead_letters": len(by_sql)}
    return by_sql


def _check_predictions(
    verdict: Verdict, wanted: Expected, rows: pa.Table, lake: pa.Table, sql: pa.Table, refused: pa.Table
) -> None:
    want = np.unique(keys(rows, wanted.devices, "event_time"))
    _check_keys(verdict, "predictions", want, keys(lake, wanted.devices, "event_time"), lake)
    sql_keys = keys(sql, wanted.devices, "event_time")
    refused_rows = _refused_rows(refused)
    refused_keys = keys(refused_rows, wanted.devices, "event_time")
    in_sql, in_letters = counted(sql_keys, want), counted(refused_keys, want)
    _check_keys(verdict, "sql", want[in_letters == 0], sql_keys[~np.isin(sql_keys, refused_keys)], sql)
    verdict.find(DOUBLED, "sql dead letters", int(np.maximum(in_letters - 1, 0).sum()), [])
    verdict.find(DOUBLED, "sql", int(np.maximum(in_sql - 1, 0)[in_letters > 0].sum()), [])
    strange = places(refused_keys, want) < 0
    verdict.find(FOREIGN, "sql dead letters", int(strange.sum()), _namer(refused_rows, "event_time")(strange))
    lake_keys = keys(lake, wanted.devices, "event_time")
    order = np.argsort(lake_keys, kind="stable")
    at = places(sql_keys, lake_keys[order])
    at = np.where(at >= 0, order[at], -1)
    changed = _changed(sql, as_sql(lake), at, PREDICTION.names)
    verdict.find(CHANGED, "sql", int(changed.sum()), _namer(sql, "event_time")(changed))
    verdict.counts |= {
        "predictions": len(lake),
        "sql_rows": len(sql),
        "in_sql_and_dead_letters": int(((in_sql > 0) & (in_letters > 0)).sum()),
    }


def _check_keys(verdict: Verdict, where: str, want: Ints, found: Ints, table: pa.Table) -> None:
    """Each wanted key is found once, and no other."""
    times = counted(found, want)
    verdict.find(LOST, where, int((times == 0).sum()), [_decoded(key) for key in want[times == 0][:_EXAMPLES]])
    verdict.find(DOUBLED, where, int((times - 1)[times > 1].sum()), [_decoded(key) for key in want[times > 1][:5]])
    strange = int((places(found, want) < 0).sum())
    verdict.find(FOREIGN, where, strange, [])


def _decoded(key: np.int64) -> str:
    return f"device {int(key) >> 51}, event_time {int(key) & ((1 << 51) - 1)}"


def _refused_rows(letters: pa.Table) -> pa.Table:
    """Device and time of the rows that the database refused, as their dead letters have them."""
    rows: list[dict[str, Any]] = [msgspec.json.decode(payload) for payload in column(letters, "payload").to_pylist()]
    times = [parse_time(row["event_time"], None) for row in rows]
    return pa.table(
        {
            "device_id": pa.array([row["device_id"] for row in rows], pa.string()),
            "event_time": pa.array(times, pa.int64()),
        }
    )


def as_sql(table: pa.Table) -> pa.Table:
    """A table in the types of the database's rows: labels as text, times as integers."""
    arrays = []
    for name in table.schema.names:
        values = column(table, name)
        arrays.append(values.view(pa.int64()) if pa.types.is_timestamp(values.type) else values)
    return pa.table(arrays, table.schema.names)


def _namer(table: pa.Table, number: str) -> Callable[[Bools], list[str]]:
    """Names the first rows of a table that are marked."""

    def names(marked: Bools) -> list[str]:
        rows = table.take(pa.array(np.flatnonzero(marked)[:_EXAMPLES])).to_pylist()
        shown = ("device_id", number, "event_time", "quality_bits", "source_partition", "source_offset", "ingest_time")
        return [" ".join(f"{name}={row[name]}" for name in shown if row.get(name) is not None) for row in rows]

    return names
