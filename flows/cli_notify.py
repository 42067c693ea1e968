"""The commands for the places that alerts go to: send a test alert by hand."""

import contextlib
import secrets
import time
from typing import Annotated

import typer

from voltmill.flows.cli_common import ConfigFile
from voltmill.flows.config import ConfigError, load

app = typer.Typer(help="The places that alerts go to.", no_args_is_help=True)

#: What a test alert says it is about; no fleet has such a device.
DEVICE = "voltmill/test"


@app.callback()
def _commands() -> None:
    pass  # makes a group of it, though it has one command


@app.command()
def test(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which places; default: all.")] = None,
    config: ConfigFile = None,
) -> None:
    """Send a test alert, once and whatever the filters say, and tell what came of it."""
    from voltmill.connectors.notify import Place
    from voltmill.connectors.notify_errors import NotifyError
    from voltmill.connectors.notify_notice import Notice

    settings = load(config)
    unknown = set(names or ()) - {place.name for place in settings.notify}
    if unknown or not settings.notify:
        raise ConfigError(f"there is no [[notify]] table{f' named {sorted(unknown)[0]!r}' if unknown else ''}")
    failed = 0
    for each in settings.notify:
        if names and each.name not in names:
            continue
        now = time.time()
        id_ = f"test-{secrets.token_hex(8)}"
        notice = Notice(id_, DEVICE, "TEST_ALERT", "critical", int(now) * 1_000_000, None, None, None, 0, now)
        began = time.monotonic()
        with contextlib.closing(Place(each, settings.mqtt).open_channel()) as channel:
            try:
                channel.send(notice)
            except NotifyError as error:
                failed += 1
                typer.echo(f"{each.place}: {error}", err=True)
            else:
                typer.echo(f"{each.place}: took {notice.id} in {time.monotonic() - began:.2f} s")
    if failed:
        raise typer.Exit(1)
