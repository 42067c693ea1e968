"""The demo's table: what was sent, what became of it, and how good the predictions are.

Everything is counted by queries on what the run left behind: the lake, the database and the truth of
the simulator. The first 300 s of each device are not scored, as in the tables of the model cards.
"""

import os
import shlex
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import msgspec
import numpy as np

from voltmill.connectors.lake_reader import list_files
from voltmill.flows.compare import Comparison
from voltmill.flows.replay import Replayed
from voltmill.flows.simulated_truth import FAULT, TRUTH
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, TELEMETRY, Quality

_UNSCORED_SECONDS: Final = 300


@dataclass(frozen=True)
class Outcome:
    """What the run gave beside its files."""

    folder: Path
    summary: dict[str, Any]
    """Of the simulator: messages by delivery."""
    replayed: Replayed
    comparison: Comparison
    """Of live and replayed predictions."""
    latency_seconds: np.ndarray[Any, np.dtype[np.float64]]
    """From publishing to the prediction in the database."""
    seconds: float
    """Wall time that the fleet ran."""


def report(outcome: Outcome) -> bool:
    """Print the table, leave it as ``demo.json``; True if all is accounted for and the replay identical."""
    facts = _facts(outcome)
    (outcome.folder / "demo.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2))
    for line in _lines(outcome, facts):
        print(line)
    return bool(facts["accounted"] and outcome.comparison.identical)


def _facts(outcome: Outcome) -> dict[str, Any]:
    db = duckdb.connect()
    lake, truth = outcome.folder / "lake", outcome.folder / "truth"
    for name, files, schema in (
        ("telemetry", list_files(lake, "telemetry"), TELEMETRY),
        ("predictions", list_files(lake, "predictions"), PREDICTION),
        ("dead_letters", list_files(lake, "dead_letters"), DEAD_LETTER),
        ("truth", sorted(map(str, truth.glob("messages-*.parquet"))), TRUTH),
        ("faults", sorted(map(str, truth.glob("faults.parquet"))), FAULT),
    ):
        if files:
            db.read_parquet(files, hive_partitioning=False).create_view(name)
        else:  # a short run may have no dead letter
            db.from_arrow(schema.empty_table()).create(name)
    accounts = _accounts(db, outcome.summary)
    soc = _row(db, _SOC, ("rows", "mae", "worst", "coverage90"))
    p50, p99 = np.percentile(outcome.latency_seconds, [50, 99]) if len(outcome.latency_seconds) else (np.nan, np.nan)
    with sqlite3.connect(outcome.folder / "voltmill.db") as sql:
        stored = int(sql.execute("select count(*) from predictions").fetchone()[0])
    return {
        **accounts,
        "reasons": dict(db.execute("select reason, count(*) from dead_letters group by 1 order by 2 desc").fetchall()),
        "predictions_in_sql": stored,
        "accounted": accounts["missing"] == 0
        and accounts["surplus"] == 0
        and accounts["letters"] == accounts["malformed"]
        and accounts["predictions"] == stored,
        "faults": {name: list(db.execute(query).fetchone() or ()) for name, query in _FAULTS.items()},
        "weak_cells": db.execute("select count(*) from faults where fault = 'weak_cell'").fetchone()[0],
        "false_alarms": db.execute(_FALSE_ALARMS).fetchone()[0],
        "soc": soc,
        "latency_p50_ms": 1e3 * float(p50),
        "latency_p99_ms": 1e3 * float(p99),
        "replay": msgspec.to_builtins(outcome.replayed),
        "comparison": msgspec.to_builtins(outcome.comparison),
    }


def _accounts(db: Any, summary: dict[str, Any]) -> dict[str, Any]:
    names = ("archived", "letters", "predictions", "missing", "surplus")
    counts = _row(db, _ACCOUNTS, names)
    malformed = sum(n for name, n in summary.items() if name.startswith("malformed"))
    return {"published": summary["published"], "malformed": malformed, **counts}


def _row(db: Any, query: str, names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(names, db.execute(query).fetchone(), strict=True))


# A sent message is archived once, a doubled one twice, a dropped or malformed one never.
_ACCOUNTS: Final = """
with found as (select device_id, seq, count(*) n from telemetry group by all),
     wanted as (select device_id, seq, case delivery when 'sent' then 1 when 'doubled' then 2 else 0 end n from truth),
     both_ as (select coalesce(f.n, 0) found, coalesce(w.n, 0) wanted
               from wanted w full join found f using (device_id, seq))
select (select count(*) from telemetry), (select count(*) from dead_letters), (select count(*) from predictions),
       sum(greatest(wanted - found, 0))::bigint, sum(greatest(found - wanted, 0))::bigint from both_
"""

# Charged a little above its nominal capacity a cell has more than 100 %; predictions end there, so the truth does.
_SOC: Final = f"""
select count(*), avg(abs(value - soc)), max(abs(value - soc)), 100 * avg((soc between lo90 and hi90)::int)
from predictions p join (select *, least(soc_percent, 100) soc from truth) t
  on p.device_id = t.device_id and p.event_time = t.reported_time
where p.value is not null and t.fault = ''
  and t.event_time >= (select min(event_time) from truth) + interval {_UNSCORED_SECONDS} second
"""


def _episodes(fault: str, bit: Quality) -> str:
    """Of the episodes of a fault, how many have a row with the bit."""
    return f"""
select count(*), count(*) filter (seen), 'episodes' from (
  select f.device_id, f."from", bool_or(q.quality_bits & {int(bit)} > 0) seen
  from faults f join truth t on t.device_id = f.device_id and t.fault = f.fault and t.event_time >= f."from"
    and (f."to" is null or t.event_time < f."to")
  join telemetry q on q.device_id = t.device_id and q.seq = t.seq
  where f.fault = '{fault}' group by all)
"""


#: What was injected, how much of it bears the bit, and what is counted.
_FAULTS: Final = {
    "dropped": f"""
select count(*), count(*) filter (quality_bits & {int(Quality.GAP_BEFORE)} > 0), 'messages' from (
  select t.device_id, t.seq, arg_min(q.quality_bits, q.seq) quality_bits
  from truth t join telemetry q on q.device_id = t.device_id and q.seq > t.seq and q.seq < t.seq + 16
    and q.quality_bits & {int(Quality.CLOCK_SKEW | Quality.OUT_OF_ORDER | Quality.DUPLICATE)} = 0
  where t.delivery = 'dropped' and t.fault <> 'clock_jump' group by all)
""",
    "doubled": f"""
select count(*), count(*) filter (seen), 'messages' from (
  select bool_or(q.quality_bits & {int(Quality.DUPLICATE)} > 0) seen
  from truth t join telemetry q using (device_id, seq) where t.delivery = 'doubled' group by t.device_id, t.seq)
""",
    "clock jump": f"""
select count(*), count(*) filter (q.quality_bits & {int(Quality.CLOCK_SKEW | Quality.LATE)} > 0), 'messages'
from truth t join telemetry q using (device_id, seq) where t.fault = 'clock_jump'
""",
    "stuck sensor": _episodes("stuck", Quality.STUCK),
    "over-temperature": _episodes("over_temperature", Quality.RANGE),
}

#: Rows of healthy devices with a bit that no fault explains.
_FALSE_ALARMS: Final = f"""
select count(*) from telemetry q join truth t using (device_id, seq)
where t.device_id not in (select device_id from faults) and t.delivery = 'sent'
  and q.quality_bits & {int(~Quality.GAP_BEFORE & ~Quality.DUPLICATE)} > 0
"""


def _hints(folder: Path) -> list[str]:
    """Commands that look at what was left; each runs as it stands, nothing has to be activated."""
    python, command = (os.path.relpath(p) for p in (sys.executable, Path(sys.executable).parent / "voltmill"))
    files = f"{folder}/lake/predictions/**/*.parquet".replace("'", "''")
    lake = (
        "select device_id, max(event_time), arg_max(value, event_time) soc "
        f"from '{files}' group by 1 order by 3 limit 5"
    )
    database = (
        "select device_id, event_time, value, lo90, hi90 from predictions_readable order by event_time desc limit 5"
    )
    commands = (
        [python, "-c", f"import duckdb; print(duckdb.sql({lake!r}))"],
        [
            python,
            "-c",
            f"import sqlite3; print(*sqlite3.connect({f'{folder}/voltmill.db'!r}).execute({database!r}), sep=chr(10))",
        ],
        [command, "replay", "-c", f"{folder}/voltmill.toml", "--lake", f"{folder}/lake", "--out", f"{folder}/again"],
    )
    return [shlex.join(c) for c in commands]


def _lines(outcome: Outcome, facts: dict[str, Any]) -> list[str]:
    soc, replayed = facts["soc"], outcome.replayed
    reasons = ", ".join(f"{n} {reason}" for reason, n in facts["reasons"].items()) or "none"
    rows = [
        ("messages published", f"{facts['published']:,} in {outcome.seconds:.0f} s"),
        ("archived", f"{facts['archived']:,} rows"),
        ("dead letters", f"{facts['letters']:,}: {reasons}"),
        ("missing, surplus", f"{facts['missing']}, {facts['surplus']}"),
    ]
    rows += [(f"fault: {name}", f"{seen} of {n} {what} flagged") for name, (n, seen, what) in facts["faults"].items()]
    rows.append(
        ("fault: weak cell", f"{facts['weak_cells']} modules; weakest_cell_z shows it, no quality bit is made for it")
    )
    rows += [
        ("rows flagged without a fault", f"{facts['false_alarms']:,}"),
        ("predictions", f"{facts['predictions']:,} in the lake, {facts['predictions_in_sql']:,} in the database"),
        (
            "SOC error against the truth",
            f"mean {soc['mae']:.2f}, worst {soc['worst']:.1f} points over {soc['rows']:,}; "
            f"90 % interval holds {soc['coverage90']:.0f} %"
            if soc["rows"]
            else "nothing to score: less than 300 s of event time",
        ),
        ("latency, publish to stored", f"p50 {facts['latency_p50_ms']:.0f} ms, p99 {facts['latency_p99_ms']:.0f} ms"),
        (
            "throughput",
            f"live {facts['published'] / outcome.seconds:,.0f} messages/s as published, "
            f"replay {replayed.rows / replayed.seconds:,.0f} rows/s",
        ),
        ("replay identical to live", _verdict(outcome.comparison)),
    ]
    width = max(len(name) for name, _ in rows)
    table = [f"  {name:<{width}}  {text}" for name, text in rows]
    good = "every message is accounted for" if facts["accounted"] else "NOT every message is accounted for"
    return [
        "",
        *table,
        "",
        f"  {good}. Look at it:",
        *(f"    {command}" for command in _hints(outcome.folder)),
    ]


def _verdict(c: Comparison) -> str:
    if c.identical:
        return f"yes, {c.left:,} predictions bit for bit"
    return f"NO: {c.changed} changed, {c.only_left} missing, {c.only_right} more"
