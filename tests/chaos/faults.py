"""Faults: what is done to a system, and how it is undone; and those of the flow itself and of its broker."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chaos.world import World

#: Systems that a fault can be done to; each has one fault at a time.
BROKER, DATABASE, LAKE, DISK, COMPACTION = "broker", "database", "lake", "disk", "compaction"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong for a while."""

    name: str
    system: str
    start: Callable[[], None]
    stop: Callable[[], None]
    seconds: tuple[float, float]
    """How long it lasts, from and to."""
    rare: bool = False
    """Once or twice in a long run, for it takes its time."""


def broker_faults(world: "World", random_: random.Random) -> list[Fault]:
    """What can happen to the broker and on the way to it."""
    broker, proxy = world.broker, world.broker_proxy

    def drop() -> None:
        proxy.drop(0.7, random_)

    return [
        Fault("broker stopped", BROKER, broker.stop, broker.start, (0.2, 6.0)),
        Fault("broker paused", BROKER, broker.pause, broker.resume, (0.5, 6.0)),
        Fault("broker unreachable", BROKER, proxy.cut, proxy.restore, (0.5, 6.0)),
        Fault("broker unreachable, a minute", BROKER, proxy.cut, proxy.restore, (50.0, 70.0), rare=True),
        Fault("broker silent", BROKER, proxy.blackhole, proxy.restore, (0.5, 8.0)),
        Fault("broker slow", BROKER, lambda: proxy.delay(0.2), proxy.restore, (1.0, 4.0)),
        Fault("broker connection dropped", BROKER, drop, lambda: None, (0.0, 0.1)),
    ]


def disk_faults(world: "World") -> list[Fault]:
    """No space for snapshots."""
    full = Fault("disk of the state full", DISK, world.disk.fill, world.disk.empty, (0.5, 8.0))
    return [full] if world.disk.mounted else []


def compaction_faults(world: "World") -> list[Fault]:
    """A compaction beside the flow, which is killed if it takes longer."""
    return [Fault("compaction", COMPACTION, world.start_compaction, world.kill_compaction, (0.5, 10.0))]


#: Kinds of interruption of the flow; the driver does them.
KILL: Final = "kill -9"
RESTART: Final = "SIGTERM and start"
KILL_IN_DRAIN: Final = "kill -9 in a drain"
STOP: Final = "SIGTERM"
RESCALE: Final = "other number of processes"
