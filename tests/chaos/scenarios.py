"""The scenarios: which systems, how many processes, and a run of one from its start to its verdict."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from chaos.checker import Verdict, check
from chaos.database_postgresql import Postgresql
from chaos.database_sqlite import Sqlite
from chaos.databases import Database
from chaos.driver import Driver, Failed, Outcome
from chaos.faults import broker_faults, compaction_faults, disk_faults
from chaos.lake_azure import AzureLake
from chaos.lakes import Lake, LocalLake
from chaos.plan import plan
from chaos.world import World
from voltmill.flows.compare import compare, read
from voltmill.flows.warm_up import warm_up

#: Messages a second.
RATE: Final = 1_000.0
#: Times between snapshots that a run may have, s.
_EPOCHS: Final = (0.3, 1.0, 1.0, 2.0)


@dataclass(frozen=True)
class Scenario:
    """Systems and the number of processes."""

    name: str
    workers: int
    lake: Callable[[Path], Lake]
    database: Callable[[Path], Database]


SCENARIOS: Final = {
    "single": Scenario("one process of two threads", 1, LocalLake, Sqlite),
    "cluster": Scenario("two processes", 2, AzureLake, Postgresql),
}


class Result(msgspec.Struct, frozen=True):
    """What a run gave."""

    scenario: str
    lake: str
    database: str
    seed: int
    epoch_seconds: float
    seconds: float
    kills: int
    outcomes: list[Outcome]
    verdict: Verdict
    replay_identical: bool
    own_ends: list[str]
    peak_rss_bytes: int

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled or otherwise wrong."""
        return not self.verdict.findings and self.replay_identical


def run(
    name: str, folder: Path, seed: int, *, kills: int, rounds: int, rescale: bool, say: Callable[[str], None]
) -> Result:
    """Run a scenario in an empty folder.

    Raises:
        Failed: The flow did not recover, catch up or drain; data were not compared then.
    """
    warm_up()  # else the first start would compile for a minute
    scenario = SCENARIOS[name]
    random_ = random.Random(f"{name}-{seed}")
    began = time.monotonic()
    world = World(
        folder,
        scenario.lake,
        scenario.database,
        epoch_seconds=random_.choice(_EPOCHS),
        file_seconds=random_.choice((1.0, 3.0)),
        workers=scenario.workers,
    )
    try:
        faults = broker_faults(world, random_) + world.lake.faults() + world.database.faults()
        faults += disk_faults(world) + compaction_faults(world)
        if not world.disk.mounted:
            say("no right to mount a small file system here: full disks are left out")
        episodes = plan(random_, faults, kills=kills, rounds=rounds, rescale=rescale)
        driver = Driver(world, say, random_)
        driver.begin(RATE, seed)
        driver.run(episodes, kills)
        if status := world.compact():
            raise Failed(f"compact: ended with {status}: {(folder / 'compaction.log').read_text()[-2000:]}")
        say("comparing ledger, lake and database")
        lake = world.lake.collect()
        verdict = check(world.ledger, lake, world.database.rows())
        say("replaying")
        identical = replay_is_identical(world.config, lake, folder / "replay")
        return Result(
            scenario=scenario.name,
            lake=world.lake.name,
            database=world.database.name,
            seed=seed,
            epoch_seconds=world.epoch_seconds,
            seconds=time.monotonic() - began,
            kills=world.flow.kills,
            outcomes=driver.outcomes,
            verdict=verdict,
            replay_identical=identical,
            own_ends=world.flow.own_ends,
            peak_rss_bytes=world.flow.peak_rss_bytes,
        )
    finally:
        world.close()


def replay_is_identical(config: Path, lake: Path, out: Path) -> bool:
    """Whether a replay of the lake gives the same predictions, byte for byte."""
    command = [sys.executable, "-m", "voltmill.flows.cli", "replay", "-c", str(config)]
    subprocess.run([*command, "--lake", str(lake), "--out", str(out)], check=True, capture_output=True)
    return compare(read(str(lake)), read(str(out))).identical
