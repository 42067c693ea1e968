"""Remote models are asked in threads, so that a slow answer holds up nothing else.

Answers are taken in the order of the questions. Rows on their way are bounded: once there are too many,
the next question waits for the oldest answer, and with it the source (back-pressure). How long that can
be is up to the model, whose calls must end by themselves.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Final, Generic, TypeVar

J = TypeVar("J")
A = TypeVar("A")

#: Calls of remote models that run at once in a process.
THREADS: Final = 8
#: Batches on their way to one model, for one shard.
BATCHES: Final = 8


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "remote-model")


class Queue(Generic[J, A]):
    """Questions to one remote model, oldest first.

    Example:
        >>> queue = Queue(abs)
        >>> [*queue.put(-1), *queue.put(-2), *queue.done(wait=True)]
        [(-1, 1), (-2, 2)]
    """

    def __init__(self, ask: Callable[[J], A]) -> None:
        self._ask = ask
        self._asked: deque[tuple[J, Future[A]]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether there is a question without an answer taken."""
        return bool(self._asked)

    def jobs(self) -> list[J]:
        """The questions whose answers were not yet taken."""
        return [job for job, _ in self._asked]

    def put(self, job: J) -> Iterator[tuple[J, A]]:
        """Ask; gives the answers that had to be waited for to keep the queue short."""
        self._asked.append((job, _threads().submit(self._ask, job)))
        return iter([self._take() for _ in range(len(self._asked) - BATCHES)])

    def done(self, *, wait: bool = False) -> Iterator[tuple[J, A]]:
        """Take the answers that are there, up to the first that is not; ``wait``: all of them."""
        while self._asked and (wait or self._asked[0][1].done()):
            yield self._take()

    def _take(self) -> tuple[J, A]:
        job, future = self._asked.popleft()
        return job, future.result()
