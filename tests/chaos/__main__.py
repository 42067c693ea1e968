"""``python -m chaos``: run the suite, print its table, write ``latest.json``; status 1 if a promise was broken."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from servers import find_azurite, find_postgresql, find_psqlodbc, has_mosquitto

from chaos import memory, mutations, report, scenarios
from chaos.driver import Failed

_LATEST = Path(__file__).parent / "latest.json"


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="the run that is drawn; printed if not given")
    parser.add_argument("--kills", type=int, default=100, help="kill -9 in each scenario, at least")
    parser.add_argument("--rounds", type=int, default=3, help="how often each fault happens")
    parser.add_argument("--scenario", choices=sorted(scenarios.SCENARIOS), action="append", help="default: all")
    parser.add_argument("--messages", type=int, default=1_000_000, help="mutated messages; 0: none")
    parser.add_argument("--memory-minutes", type=float, default=10.0, help="a long outage of the database; 0: none")
    parser.add_argument("--folder", type=Path, default=None, help="where to work, and to leave everything")
    parser.add_argument("--no-write", action="store_true", help="do not write latest.json")
    options = parser.parse_args()
    if not (has_mosquitto() and find_postgresql() and find_psqlodbc() and find_azurite()):
        _say("Mosquitto, PostgreSQL, its ODBC driver or Azurite is missing: run deploy/dev/servers.sh")
        return 1
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    _say(f"chaos: SEED={seed} KILLS={options.kills}")
    try:
        return _run(options, seed)
    except Failed as failure:
        _say(f"FAILED with SEED={seed}: {failure}")
        return 1


def _run(options: argparse.Namespace, seed: int) -> int:
    full = report.Report(command=f"make chaos SEED={seed} KILLS={options.kills}")
    if options.messages:
        _say(f"{options.messages} mutated messages")
        began = time.monotonic()
        full.tally = mutations.run(options.messages, seed)
        _show(mutations.text(full.tally, seed, time.monotonic() - began))
    for name in options.scenario or scenarios.SCENARIOS:
        with _Folder(options.folder, name) as folder:
            kills, rounds = options.kills, options.rounds
            result = scenarios.run(name, folder.path, seed, kills=kills, rounds=rounds, rescale=True, say=_say)
            folder.kept |= not result.passed
        _show(report.text(result))
        full.results.append(result)
    if options.memory_minutes:
        with _Folder(options.folder, "memory") as folder:
            full.memory = memory.run(folder.path, seed, minutes=options.memory_minutes, rate=2_000.0, say=_say)
            folder.kept |= not full.memory.passed
        _show(memory.text(full.memory))
    if not options.no_write:
        report.write(_LATEST, full)
    _say(f"{'nothing lost, nothing doubled' if full.passed else 'FAILED'}: SEED={seed}")
    return int(not full.passed)


class _Folder:
    """A folder to work in; one that nobody named is removed at the end, unless there is something to look at."""

    def __init__(self, parent: Path | None, name: str) -> None:
        self.kept = parent is not None
        self.path = Path(tempfile.mkdtemp(prefix=f"voltmill-chaos-{name}-")) if parent is None else parent / name
        self.path.mkdir(parents=True, exist_ok=parent is None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or self.kept:
            _say(f"everything is left in {self.path}")
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def _show(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
