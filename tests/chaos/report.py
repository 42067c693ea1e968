"""The table of a run, for people, and the same as JSON."""

import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from chaos.checker import CHANGED, DISORDERED, DOUBLED, FOREIGN, LEFT_OVER, LOST
from chaos.driver import Outcome
from chaos.memory import Memory
from chaos.mutations import Tally
from chaos.scenarios import Result

_PACKAGES: Final = ("voltmill", "bytewax", "paho-mqtt", "pyarrow", "numpy", "onnxruntime", "adlfs", "pyodbc")
_KINDS: Final = (LOST, DOUBLED, CHANGED, FOREIGN, DISORDERED, LEFT_OVER)


class Row(msgspec.Struct, frozen=True):
    """One kind of fault in one scenario."""

    fault: str
    count: int
    kills: int
    outage_seconds: float
    recovery_median_seconds: float
    recovery_worst_seconds: float
    start_up_median_seconds: float
    worst_without_start_up_seconds: float


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """The outcomes by kind of fault."""
    kinds = sorted({outcome.label for outcome in outcomes})
    return [_row(kind, [o for o in outcomes if o.label == kind]) for kind in kinds]


def _row(kind: str, outcomes: list[Outcome]) -> Row:
    recoveries = [o.recovery_seconds for o in outcomes]
    return Row(
        fault=kind,
        count=len(outcomes),
        kills=sum(o.kills for o in outcomes),
        outage_seconds=round(sum(o.outage_seconds for o in outcomes), 1),
        recovery_median_seconds=round(statistics.median(recoveries), 2),
        recovery_worst_seconds=round(max(recoveries), 2),
        start_up_median_seconds=round(statistics.median(o.start_up_seconds for o in outcomes), 2),
        worst_without_start_up_seconds=round(max(o.recovery_seconds - o.start_up_seconds for o in outcomes), 2),
    )


def text(result: Result) -> str:
    """The table of a scenario."""
    lines = [
        f"{result.scenario}, {result.database}, {result.lake}; seed {result.seed}, an epoch of "
        f"{result.epoch_seconds:g} s, {result.seconds:.0f} s in all",
        f"{'fault':<44}{'times':>6}{'kills':>6}{'outage s':>10}{'recovery s: median':>20}{'worst':>8}"
        f"{'start-up':>10}{'worst without':>15}",
    ]
    for row in rows(result.outcomes):
        lines.append(
            f"{row.fault:<44}{row.count:>6}{row.kills:>6}{row.outage_seconds:>10.1f}{row.recovery_median_seconds:>20.2f}"
            f"{row.recovery_worst_seconds:>8.2f}{row.start_up_median_seconds:>10.2f}"
            f"{row.worst_without_start_up_seconds:>15.2f}"
        )
    counts, verdict = result.verdict.counts, result.verdict
    lines += [
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counts.items()),
        f"{result.kills} kills; " + ", ".join(f"{kind} {verdict.count(kind)}" for kind in _KINDS),
        f"replay {'identical' if result.replay_identical else 'DIFFERS'}; ended by itself {len(result.own_ends)} "
        f"times; peak resident set {result.peak_rss_bytes / 1e6:.0f} MB",
    ]
    for finding in verdict.findings:
        lines.append(f"{finding.kind.upper()} {finding.where}: {finding.count}")
        lines += [f"    {example}" for example in finding.examples]
    lines += [f"ended: {words}" for words in result.own_ends[:5]]
    return "\n".join(lines)


class Report(msgspec.Struct):
    """Everything that ``make chaos`` found."""

    command: str
    tally: Tally | None = None
    results: list[Result] = []
    memory: Memory | None = None

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        sound = self.tally is None or not self.tally.problems
        return sound and all(r.passed for r in self.results) and (self.memory is None or self.memory.passed)


def write(file: Path, report: Report) -> None:
    """Write it as JSON, where it is committed: no path of this machine in it.

    What was left out of this run stays as the run before found it; each part names its command.
    """
    content = msgspec.json.decode(file.read_bytes()) if file.exists() else {"scenarios": []}
    content |= {
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": {name: version(name) for name in _PACKAGES},
    }
    run = {"command": report.command}
    new = [run | _scenario(result) for result in report.results]
    names = {scenario["scenario"] for scenario in new}
    content["scenarios"] = [old for old in content["scenarios"] if old["scenario"] not in names] + new
    if report.memory:
        content["memory"] = run | _memory(report.memory)
    if report.tally:
        content["mutations"] = run | {
            "messages": report.tally.messages,
            "rows": report.tally.rows,
            "dead_letters": report.tally.dead_letters,
            "raised_lost_or_doubled": len(report.tally.problems),
        }
    file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "database_away_minutes": memory.minutes,
        "messages_per_second": round(memory.rate),
        "rss_before_megabytes": round(memory.before_bytes / 1e6),
        "rss_peak_megabytes": round(memory.peak_bytes / 1e6),
        "rss_catch_up_megabytes": round(memory.catch_up_peak_bytes / 1e6),
        "recovery_seconds": round(memory.recovery_seconds, 2),
        "caught_up_seconds": round(memory.catch_up_seconds),
        **memory.verdict.counts,
        **{kind: memory.verdict.count(kind) for kind in _KINDS},
    }


def _scenario(result: Result) -> dict[str, Any]:
    return {
        "scenario": result.scenario,
        "lake": result.lake,
        "database": result.database,
        "seed": result.seed,
        "epoch_seconds": result.epoch_seconds,
        "seconds": round(result.seconds),
        "kills": result.kills,
        **result.verdict.counts,
        **{kind: result.verdict.count(kind) for kind in _KINDS},
        "replay_identical": result.replay_identical,
        "ended_by_itself": len(result.own_ends),
        "peak_rss_megabytes": round(result.peak_rss_bytes / 1e6),
        "faults": [msgspec.to_builtins(row) for row in rows(result.outcomes)],
    }
