"""Runs a plan against a world: breaks and mends, keeps the flow running, measures how soon it works again."""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from chaos.faults import KILL, KILL_IN_DRAIN, RESCALE, RESTART, STOP
from chaos.plan import Episode, Step
from chaos.stream import DEVICES, TOPICS
from chaos.world import World

_TURN_SECONDS: Final = 0.05
_RECOVERY_SECONDS: Final = 180.0
_SURVIVOR_SECONDS: Final = 1.5
_CATCH_UP_SECONDS: Final = 600.0
_SAY_EVERY_SECONDS: Final = 10.0


class Outcome(msgspec.Struct, frozen=True):
    """What came of an episode."""

    label: str
    kills: int
    outage_seconds: float
    """From its beginning until all was mended or started again."""
    recovery_seconds: float
    """From then until a new prediction was stored."""
    start_up_seconds: float
    """Of these, what processes took to start; 0 if none had to."""


class Failed(Exception):
    """The flow did not do what it must; with the last words of its logs."""


class Probe(threading.Thread):
    """Looks at the newest prediction in the database, all the time."""

    def __init__(self, newest: Callable[[], int]) -> None:
        super().__init__(name="probe", daemon=True)
        self._newest = newest
        self.value, self.stopped = 0, False

    def run(self) -> None:
        """Until it is stopped."""
        while not self.stopped:
            self.value = max(self.value, self._newest())
            time.sleep(0.05)


class Driver:
    """Drives one run.

    Args:
        world: the systems; the publisher runs.
        say: shows a line.
        random_: decides details.
    """

    def __init__(self, world: World, say: Callable[[str], None], random_: random.Random) -> None:
        self.world, self.flow = world, world.flow
        self.outcomes: list[Outcome] = []
        self._say, self._random = say, random_
        self._said = 0.0
        self._probe = Probe(world.database.newest)
        self._probe.start()

    def begin(self, rate: float, seed: int) -> None:
        """Start flow and publisher, and wait for the first predictions to be durable.

        A recovery store that holds nothing yet may be one that was lost, so at a crash before that the flow sets
        aside, rather than removes, what it had written; here that would look like files left over.
        """
        self.flow.start()
        # Before somebody has subscribed the broker keeps nothing: that is MQTT, not a loss.
        self.until(lambda: self.flow.subscribed >= len(TOPICS), _RECOVERY_SECONDS, "it did not subscribe")
        self.world.publish(rate, seed)
        self.until(lambda: self._probe.value > 0, _RECOVERY_SECONDS, "nothing was stored at the start")
        self.wait(3 * self.world.epoch_seconds + 1.0)

    def run(self, episodes: list[Episode], kills: int) -> None:
        """Do all episodes, kill until there were enough kills, let the flow catch up and drain it.

        Raises:
            Failed: It did not recover, catch up or drain.
        """
        for number, episode in enumerate(episodes):
            self._show(f"{number + 1} of {len(episodes)}: {episode.label}")
            self._episode(episode)
            self.wait(episode.pause)
        while self.flow.kills < kills:  # some met no running process
            self._episode(Episode(KILL, [Step(0.0, KILL, member=self._random.randrange(2))]))
        self._say(f"all {len(episodes)} episodes done, {self.flow.kills} kills: letting it catch up")
        self.finish()

    def finish(self) -> None:
        """End the publisher, wait until its last messages are stored, drain; start and drain once more.

        The second start shows that the broker has nothing left to deliver again.
        """
        if self.world.stop_publishing():
            raise Failed(f"the publisher did not get rid of its messages: {self.world.published}")
        last = self.world.published.event_time_us
        stored = Throttled(lambda: self.world.database.since(last) >= DEVICES, 0.5)
        self.until(stored, _CATCH_UP_SECONDS, "the last messages were not stored")
        self._drained()
        self.flow.start()
        self.until(lambda: self.flow.all_running, _RECOVERY_SECONDS, "it did not start once more")
        self.wait(2.0)
        self._drained()
        self._probe.stopped = True

    def _episode(self, episode: Episode) -> None:
        began, kills = time.monotonic(), self.flow.kills
        for step in episode.steps:
            self.wait(began + step.at - time.monotonic())
            self._do(step)
        mended = time.monotonic()
        stored = self.stored_again(episode.label)
        begin = max(mended, self.flow.last_spawn)
        self.outcomes.append(
            Outcome(
                label=episode.label,
                kills=self.flow.kills - kills,
                outage_seconds=begin - began,
                recovery_seconds=stored - begin,
                start_up_seconds=max(0.0, self.flow.ready_at - begin),
            )
        )

    def stored_again(self, after: str) -> float:
        """Wait for a new prediction, of a flow that goes on; when it was stored."""
        base, spawned, stored = self._probe.value, self.flow.last_spawn, 0.0

        def recovered() -> bool:
            nonlocal base, spawned, stored
            if spawned != self.flow.last_spawn:  # what was stored before a start does not count
                base, spawned, stored = self._probe.value, self.flow.last_spawn, 0.0
            if not stored and self.flow.all_running and self._probe.value > base:
                stored = time.monotonic()
            # What is left of a cluster may go on for a moment before it notices, and ends to be started anew.
            return bool(stored) and (self.flow.workers == 1 or time.monotonic() > stored + _SURVIVOR_SECONDS)

        self.until(recovered, _RECOVERY_SECONDS, f"no new prediction after: {after}")
        return stored

    def _do(self, step: Step) -> None:
        if step.fault is not None:
            (step.fault.start if step.begins else step.fault.stop)()
        elif step.what == KILL:
            self.flow.kill(step.member)
        elif step.what == STOP:
            self.flow.ask_to_drain()  # in an outage it may end with status 1; in any case it is started again
        elif step.what == KILL_IN_DRAIN:
            self.flow.ask_to_drain()
            self.wait(self._random.uniform(0.0, 1.2))
            self.flow.kill(step.member)
        elif step.what == RESTART:
            self._drained()
            self.flow.start()
        elif step.what == RESCALE:
            self._rescaled()

    def _rescaled(self) -> None:
        """Go on for a while with another number of processes, killed once, and back."""
        usual = self.flow.workers
        self._drained()
        self.flow.workers = 3 - usual
        self.flow.start()
        self.stored_again("the number of processes was changed")
        self.wait(self._random.uniform(0.0, 3.0))
        self.flow.kill(0)
        self.stored_again("a kill with another number of processes")
        self._drained()
        self.flow.workers = usual
        self.flow.start()

    def _drained(self) -> None:
        self.until(lambda: self.flow.all_running, _RECOVERY_SECONDS, "it does not run, so it cannot be drained")
        status = self.flow.drain()
        if any(status):
            raise Failed(f"SIGTERM: ended with {status}\n{self.flow.words()}")

    def wait(self, seconds: float) -> None:
        """Let time pass; keeps the flow running."""
        end = time.monotonic() + seconds
        while True:
            self.flow.supervise()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(_TURN_SECONDS, left))

    def until(self, ready: Callable[[], bool], within: float, what: str) -> None:
        """Wait until something is so; ``Failed`` if it takes longer than ``within`` seconds."""
        deadline = time.monotonic() + within
        while not ready():
            if time.monotonic() > deadline:
                raise Failed(f"{what}, within {within:.0f} s\n{self.flow.words()}")
            self.wait(_TURN_SECONDS)

    def _show(self, text: str) -> None:
        if time.monotonic() - self._said > _SAY_EVERY_SECONDS:
            self._said = time.monotonic()
            published = self.world.published
            self._say(f"{text}; {self.flow.kills} kills, {published.sent} messages")


class Throttled:
    """Asks a costly question at most every so many seconds."""

    def __init__(self, question: Callable[[], bool], seconds: float) -> None:
        self._question, self._seconds, self._next = question, seconds, 0.0

    def __call__(self) -> bool:
        """The answer, or no."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return self._question()
