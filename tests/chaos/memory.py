"""Memory in a long outage of the database: ``python -m chaos.memory --minutes 10 --rate 2000``.

The resident set of the flow is looked at each second, from the moment the database is cut off. While it is
away the flow must read no more than fits its bounded inbox: the set may not grow by more than a fifth of what
it was. Then the database comes back, the flow catches up, and everything is compared as ever.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from chaos.checker import Verdict, check
from chaos.database_postgresql import Postgresql
from chaos.driver import Driver
from chaos.lakes import LocalLake
from chaos.world import World
from voltmill.flows.warm_up import warm_up

#: How far the resident set may grow.
LIMIT: Final = 1.2
_WARM_UP_SECONDS: Final = 60.0
_BEFORE_SECONDS: Final = 10


class Memory(msgspec.Struct, frozen=True):
    """What an outage cost."""

    minutes: float
    rate: float
    """Messages a second that were published during the outage."""
    before_bytes: int
    """Resident set before the outage: the median of its last seconds."""
    peak_bytes: int
    """Largest one during the outage."""
    end_bytes: int
    """At its end."""
    catch_up_peak_bytes: int
    """Largest one afterwards, while it caught up."""
    recovery_seconds: float
    """From the database's return until a new prediction was stored."""
    catch_up_seconds: float
    """From then until every message was stored, the publisher's end included."""
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether it stayed within the limit and nothing was lost."""
        return self.peak_bytes <= LIMIT * self.before_bytes and not self.verdict.findings


def run(folder: Path, seed: int, *, minutes: float, rate: float, say: Callable[[str], None]) -> Memory:
    """Run it in an empty folder.

    Raises:
        Failed: The flow did not recover, catch up or drain.
    """
    warm_up()
    world = World(folder, LocalLake, Postgresql, epoch_seconds=2.0, file_seconds=10.0, workers=1)
    database = world.database
    assert isinstance(database, Postgresql)
    try:
        driver = Driver(world, say, random.Random(seed))
        driver.begin(rate, seed)
        driver.wait(_WARM_UP_SECONDS)
        before = _sampled(driver, _BEFORE_SECONDS)
        sent, began = world.published.sent, time.monotonic()
        database.cut()
        say(f"database cut off for {minutes:g} minutes, resident set {max(before) / 1e6:.0f} MB")
        during = _sampled(driver, round(60 * minutes))
        reached = (world.published.sent - sent) / (time.monotonic() - began)
        database.restore()
        back = time.monotonic()
        recovered = driver.stored_again("a long outage") - back
        after = _sampled(driver, 30)
        say(f"recovered after {recovered:.1f} s: letting it catch up")
        driver.finish()
        caught_up = time.monotonic() - back
        return Memory(
            minutes=minutes,
            rate=reached,
            before_bytes=sorted(before)[len(before) // 2],
            peak_bytes=max(during),
            end_bytes=during[-1],
            catch_up_peak_bytes=max(after + [world.flow.peak_rss_bytes]),
            recovery_seconds=recovered,
            catch_up_seconds=caught_up,
            verdict=check(world.ledger, world.lake.collect(), database.rows()),
        )
    finally:
        world.close()


def _sampled(driver: Driver, seconds: int) -> list[int]:
    """The resident set, each second."""
    samples = []
    for _ in range(seconds):
        driver.wait(1.0)
        samples.append(driver.flow.rss_bytes)
    return samples


def text(memory: Memory) -> str:
    """What came of it."""
    growth = 100 * (memory.peak_bytes / memory.before_bytes - 1)
    lines = [
        f"database away for {memory.minutes:g} minutes at {memory.rate:.0f} messages/s: resident set "
        f"{memory.before_bytes / 1e6:.0f} MB before, {memory.peak_bytes / 1e6:.0f} MB at most ({growth:+.1f} %), "
        f"{memory.end_bytes / 1e6:.0f} MB at the end, {memory.catch_up_peak_bytes / 1e6:.0f} MB while catching up",
        f"working again {memory.recovery_seconds:.1f} s after its return, caught up after "
        f"{memory.catch_up_seconds:.0f} s; " + ", ".join(f"{k} {v}" for k, v in memory.verdict.counts.items()),
    ]
    lines += [f"{finding.kind.upper()} {finding.where}: {finding.count}" for finding in memory.verdict.findings]
    return "\n".join(lines)


def main() -> int:
    """Run it and say what came of it; status 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m chaos.memory", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=2_000.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="voltmill-chaos-memory-") as folder:
        memory = run(Path(folder), options.seed, minutes=options.minutes, rate=options.rate, say=print)
    print(text(memory))
    return int(not memory.passed)


if __name__ == "__main__":
    sys.exit(main())
