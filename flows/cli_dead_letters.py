"""The commands for dead letters: count and list them, show one, send those off again that can be taken by now."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Annotated, Any

import msgspec
import typer

from voltmill.flows.cli_common import ConfigFile, parse_time
from voltmill.flows.config import Config, ConfigError, load

app = typer.Typer(help="Messages that were refused: count, show and redrive them.", no_args_is_help=True)

Stage = Annotated[str, typer.Option(help="Only letters of this stage: decode, estimate or sql.")]
Reason = Annotated[str, typer.Option(help="Only letters of this reason.")]
Topic = Annotated[str, typer.Option(help="Only letters of topics that match this MQTT topic filter.")]
Start = Annotated[str, typer.Option("--from", help="First time of arrival, ISO 8601.")]
Stop = Annotated[str, typer.Option("--to", help="Time of arrival to stop before, ISO 8601.")]


@app.command("list")
def list_(
    config: ConfigFile = None,
    stage: Stage = "",
    reason: Reason = "",
    topic: Topic = "",
    start: Start = "",
    stop: Stop = "",
    limit: Annotated[int, typer.Option(min=0, help="Lines at most; 0: all.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="Every letter with its id, rather than counts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, for machines.")] = False,
) -> None:
    """Counts of dead letters by stage, reason and topic, and which were redriven."""
    from voltmill.flows.dead_letters import DeadLetters

    letters = DeadLetters(_settings(config))
    wanted = _filter(stage, reason, topic, start, stop)
    rows = _each(letters, wanted) if every else _groups(letters, wanted)
    _print(islice(rows, limit or None), as_json=as_json)
    if as_json:
        return
    if limit and (more := sum(1 for _ in rows)):
        typer.echo(f"... and {more} more: --limit 0 shows all")
    waiting = letters.waiting()
    if waiting.files:
        typer.echo(f"{waiting.letters} redriven letters wait for a live flow, in {', '.join(waiting.files)}")


@app.command()
def show(
    letter: Annotated[str, typer.Argument(help="Id of a letter, as list --all shows it.")],
    config: ConfigFile = None,
) -> None:
    """Everything of one letter, and what the present configuration makes of it."""
    from voltmill.flows.dead_letters import DeadLetters, time_of
    from voltmill.flows.letter_text import described, payload_lines, verdict
    from voltmill.flows.running import prepare

    settings = _settings(config)
    prepare()
    found, redriven = DeadLetters(settings).find(letter)
    typer.echo(f"{'id':12}{letter}")
    for name, text in described(found, time_of(redriven)):
        typer.echo(f"{name:12}{text}")
    for line in payload_lines(found["payload"]):
        typer.echo(f"    {line}")
    for line in verdict(found, settings):
        typer.echo(line)


@app.command()
def redrive(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of letters; none: all that match.")] = None,
    config: ConfigFile = None,
    stage: Annotated[str, typer.Option(help="decode: messages; sql: rows that the database refused.")] = "decode",
    reason: Reason = "",
    topic: Topic = "",
    start: Start = "",
    stop: Stop = "",
    limit: Annotated[int, typer.Option(min=0, help="Letters at most; 0: all.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Send letters through the graph again, once, if the present configuration can read them."""
    from voltmill.flows.redrive import redrive as redrive_
    from voltmill.flows.running import prepare

    settings = _settings(config)
    wanted = _filter(stage, reason, topic, start, stop, ids or ())
    if stage == "decode":
        prepare()
    if dry_run or not yes:
        plan = redrive_(settings, wanted, limit=limit, dry_run=True)
        can = "can be taken" if stage == "decode" else "can be offered to the database again"
        _say(plan, f"{_letters(plan.chosen)} {can}")
        if dry_run or not plan.chosen:
            return
        typer.confirm("Redrive them?", abort=True)
    done = redrive_(settings, wanted, limit=limit)
    if stage == "sql":
        _say(done, f"{_letters(done.chosen)} stored in {settings.sql.place}")
    elif done.files:
        soon = f"a live flow takes them within {settings.redrive.poll_seconds:g} s"
        _say(done, f"{_letters(done.chosen)} sent off in {', '.join(done.files)}: {soon}")
    else:
        _say(done, "no letter can be taken")


def _settings(config: Any) -> Config:
    from voltmill.flows.running import log_to_stderr

    settings = load(config)
    log_to_stderr(settings.run.log_level)
    return settings


def _filter(stage: str, reason: str, topic: str, start: str, stop: str, ids: Iterable[str] = ()) -> Any:
    from voltmill.flows.dead_letters import Filter

    first, last = parse_time(start, "--from"), parse_time(stop, "--to")
    if first and last and last <= first:
        raise ConfigError(f"--to {stop}: is not after --from {start}")
    return Filter(stage=stage, reason=reason, topic=topic, start=first, stop=last, ids=frozenset(ids))


def _groups(letters: Any, wanted: Any) -> Iterable[dict[str, Any]]:
    from voltmill.flows.dead_letters import time_of

    for (stage, reason, topic, partition), group in letters.groups(wanted).items():
        yield {
            "stage": stage,
            "reason": reason,
            "topic": topic,
            "source_partition": partition,
            "letters": group.letters,
            "redriven": group.redriven,
            "first": time_of(group.first),
            "last": time_of(group.last),
            "redriven_at": time_of(group.redriven_at),
        }


def _each(letters: Any, wanted: Any) -> Iterable[dict[str, Any]]:
    from voltmill.flows.dead_letters import time_of

    for found in letters.read(wanted):
        for id_, row, redriven in zip(found.ids, found.rows.to_pylist(), found.redriven.tolist(), strict=True):
            payload = row.pop("payload")
            yield {"id": id_, **row, "bytes": len(payload or b""), "redriven_at": time_of(redriven)}


#: The columns for people; JSON has them all.
_SHOWN = {
    "id": "id",
    "stage": "stage",
    "reason": "reason",
    "letters": "letters",
    "bytes": "bytes",
    "redriven": "redriven",
    "ingest_time": "arrived",
    "first": "first",
    "last": "last",
    "redriven_at": "redriven at",
    "from": "from",
}
_BLOCK = 1000


def _print(rows: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            typer.echo(msgspec.json.encode(row))
        return
    rows, header = iter(rows), True
    while block := list(islice(rows, _BLOCK)):  # of very many, columns line up a block at a time
        for line in _table(block, header=header):
            typer.echo(line)
        header = False
    if header:
        typer.echo("no dead letters")


def _table(rows: Sequence[dict[str, Any]], *, header: bool) -> list[str]:
    from voltmill.flows.letter_text import plain, shown_time

    cells = []
    for row in rows:
        row = row | {"from": row["topic"] if row["topic"] is not None else row["source_partition"]}
        times = {name: shown_time(row[name]) for name in ("ingest_time", "first", "last", "redriven_at") if name in row}
        cells.append([plain(str((row | times)[name])) for name in _SHOWN if name in row])
    lines = ([[title for name, title in _SHOWN.items() if name in rows[0] or name == "from"]] if header else []) + cells
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _letters(count: int) -> str:
    return f"{count} letter{'' if count == 1 else 's'}"


def _say(outcome: Any, first: str) -> None:
    typer.echo(first)
    if outcome.refused:
        why = ", ".join(f"{count} {reason}" for reason, count in outcome.refused.most_common(10))
        typer.echo(f"{_letters(outcome.refused.total())} cannot, and stay: {why}")
    if outcome.before:
        typer.echo(f"{_letters(outcome.before)} left out: redriven before, or equal to one that is")
