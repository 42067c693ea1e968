"""The plan of a run: which faults, when and for how long, drawn from the seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from chaos.faults import KILL, KILL_IN_DRAIN, RESCALE, RESTART, STOP, Fault

#: Kills one after another: during start-up, while the flow catches up, and after some epochs.
_GAPS: Final = ((0.1, 1.0), (1.0, 2.5), (2.0, 5.0))


@dataclass(frozen=True)
class Step:
    """Something to do, so many seconds after an episode has begun."""

    at: float
    what: str
    fault: Fault | None = None
    begins: bool = True
    member: int = 0
    """Which process is killed."""


@dataclass(frozen=True)
class Episode:
    """Faults that belong together; after them the flow is given the time to recover."""

    label: str
    steps: list[Step] = field(default_factory=list)
    pause: float = 0.0
    """Quiet time after the recovery, s."""


def plan(random_: random.Random, faults: Sequence[Fault], *, kills: int, rounds: int, rescale: bool) -> list[Episode]:
    """The episodes of a run in the order they happen.

    Args:
        random_: decides.
        faults: what can happen to the systems around the flow.
        kills: how often a process is killed, at least.
        rounds: how often each fault that is not rare happens; 0: a sixth of them, once.
        rescale: whether the number of processes changes, and rare faults happen, once each.
    """
    common = [fault for fault in faults if not fault.rare]
    chosen = common * rounds or random_.sample(common, -(-len(common) // 6))
    episodes = [_fault_episode(random_, fault, common) for fault in chosen]
    episodes += [_interruption(random_, what) for what in (RESTART, KILL_IN_DRAIN) for _ in range(max(1, rounds // 2))]
    if rescale:
        episodes += [_fault_episode(random_, fault, []) for fault in faults if fault.rare]
        episodes += [_interruption(random_, RESCALE) for _ in range(max(1, rounds // 2))]
    planned = sum(step.what in (KILL, KILL_IN_DRAIN) for episode in episodes for step in episode.steps)
    while planned < kills:
        series = _kill_series(random_, min(random_.choice((1, 1, 2, 3)), kills - planned))
        planned += len(series.steps)
        episodes.append(series)
    random_.shuffle(episodes)
    return episodes


def _fault_episode(random_: random.Random, fault: Fault, others: Sequence[Fault]) -> Episode:
    """One fault; now and then with one of another system, a kill or a SIGTERM in it."""
    length = random_.uniform(*fault.seconds)
    steps, label = [Step(0.0, fault.name, fault), Step(length, fault.name, fault, begins=False)], fault.name
    second = random_.choice([f for f in others if f.system != fault.system] or [None])  # type: ignore[list-item]
    chance = random_.random()
    if chance < 0.15 and second is not None:
        begin = random_.uniform(0, length)
        end = begin + random_.uniform(*second.seconds)
        steps += [Step(begin, second.name, second), Step(end, second.name, second, begins=False)]
        label = "two at once"
    elif chance < 0.25:
        steps.append(Step(random_.uniform(0, length), STOP))
        label += f", {STOP}"
    elif chance < 0.5:
        steps.append(Step(random_.uniform(0, length + 1.0), KILL, member=random_.randrange(2)))
        label += f", {KILL}"
    return Episode(label, sorted(steps, key=lambda step: step.at), random_.uniform(0.0, 1.5))


def _kill_series(random_: random.Random, size: int) -> Episode:
    steps, at = [], 0.0
    for _ in range(size):
        steps.append(Step(at, KILL, member=random_.randrange(2)))
        at += random_.uniform(*random_.choice(_GAPS))
    return Episode(KILL if size == 1 else f"{KILL}, one after another", steps, random_.uniform(0.0, 3.0))


def _interruption(random_: random.Random, what: str) -> Episode:
    return Episode(what, [Step(random_.uniform(0.0, 1.0), what, member=random_.randrange(2))], random_.uniform(0, 2))
