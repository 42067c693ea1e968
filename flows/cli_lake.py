"""The command that looks after the lake."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from voltmill.flows.cli_common import ConfigFile, FinishedStores, Progress
from voltmill.flows.config import Config, ConfigError, load

if TYPE_CHECKING:
    from voltmill.connectors.compact_settings import Compacted, CompactSettings
    from voltmill.connectors.store import Store


def compact(
    config: ConfigFile = None,
    lake: Annotated[str, typer.Option(help="Folder or URL; default: that of the configuration.")] = "",
    table: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again. Default: all.")] = None,
    before: Annotated[
        str, typer.Option(help="Only days of arrival before this one, such as 2026-11-22. Default: today, UTC.")
    ] = "",
    max_file_mb: Annotated[int, typer.Option(help="Size of a merged file, MiB: a power of two, 1 to 1024.")] = 128,
    finished: FinishedStores = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be merged.")] = False,
) -> None:
    """Merge the small files of the lake into day files, while the flow runs."""
    from voltmill.connectors.compact import compact as compact_
    from voltmill.connectors.compact import tables

    configured = load(config)
    settings = _settings(configured, before, max_file_mb, finished or [], dry_run)
    store = msgspec.structs.replace(configured.lake, url=lake or configured.lake.url).open()
    there = tables(store)
    _check_names("--table", table or [], there)
    chosen = table or there
    _check_finished(settings, store, chosen)
    if not chosen:
        typer.echo("nothing to merge: there is no table yet")
    failed = False
    for name in chosen:
        done = compact_(store, name, settings, Progress(f"{name}: day"))
        for line in _lines(done, settings):
            typer.echo(f"{name}: {line}")
        for line in done.problems:
            typer.echo(f"voltmill: {line}", err=True)
        failed |= bool(done.problems)
    if failed:
        raise typer.Exit(1)


def _settings(config: Config, before: str, max_file_mb: int, finished: list[str], dry_run: bool) -> "CompactSettings":
    from voltmill.connectors.compact_settings import CompactSettings
    from voltmill.flows import recovery

    try:
        day = date.fromisoformat(before) if before else datetime.now(UTC).date()
    except ValueError:
        raise ConfigError(f"--before {before}: not a day, such as 2026-11-22") from None
    if recovery.has_store(config.run) and recovery.read(Path(config.run.state)).name in finished:
        raise ConfigError(
            f"--finished: the flow of {config.run.state} can be started again, and could not go on when its last "
            "files were merged; remove that recovery store first"
        )
    try:
        return CompactSettings(
            before=day,
            max_file_mb=max_file_mb,
            finished=frozenset(finished),
            compression_level=config.lake.compression_level,
            dry_run=dry_run,
        )
    except ValueError as e:
        raise ConfigError(f"--{str(e).replace('_', '-', 2).replace(' =', '', 1)}") from None


def _check_finished(settings: "CompactSettings", store: "Store", tables: list[str]) -> None:
    from voltmill.connectors.compact import stores

    if settings.finished:
        there = {name for table in tables for name in stores(store, table)}
        _check_names("--finished", sorted(settings.finished), sorted(there))


def _check_names(option: str, wanted: list[str], there: list[str]) -> None:
    for name in wanted:
        if name not in there:
            raise ConfigError(f"{option} {name}: not in this lake; there are: {', '.join(there) or 'none'}")


def _lines(done: "Compacted", settings: "CompactSettings") -> Iterator[str]:
    if not done.merged:
        yield "nothing to merge"
    elif settings.dry_run:
        yield f"{_files(done.merged)} of {_megabytes(done.bytes_before)} would become {done.into}"
    else:
        yield (
            f"{_files(done.merged)} of {_megabytes(done.bytes_before)} became {done.into} of "
            f"{_megabytes(done.bytes_after)}, {done.rows} rows"
        )
    if done.cleared:
        yield f"{_files(done.cleared)} removed that a compaction had merged, which was ended before it removed them"
    if done.later:
        yield f"{_files(done.later)} left: of {settings.before} or later"
    if done.waiting:
        yield f"{_files(done.waiting)} left: at the end of a day that may go on"
    for name, count in sorted(done.unsettled.items()):
        yield (
            f"{_files(count)} left: a restart of the flow of {name} may take them back; "
            f"if it never runs again: --finished {name}"
        )


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
