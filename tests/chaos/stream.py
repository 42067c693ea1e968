"""What is published: the messages of a simulated fleet without end, some of them broken, some in arrays.

Every broken message is unlike any other, so that dead letters can be counted one by one; good ones
differ by device and counter, but for one in a thousand that the "gateway" sends twice on purpose.
"""

import random
from collections.abc import Iterator
from typing import Final

from voltmill.flows.simulate_settings import FaultSettings, SimulateSettings
from voltmill.flows.simulated_messages import EPOCH, Run, copies

Message = tuple[str, bytes]

GATEWAYS: Final = 2
#: One topic filter a gateway, so that a cluster has a partition for each of two processes.
TOPICS: Final = tuple(f"voltmill/site-1/gw-{k + 1}/#" for k in range(GATEWAYS))
DEVICES: Final = 200
MALFORMED_RATE: Final = 0.01
ARRAY_RATE: Final = 0.005


def fleet(seed: int) -> SimulateSettings:
    """The fleet: sound, for what is lost or doubled must not hide behind faults of the measurement."""
    faults = FaultSettings(
        drop_rate=0, double_rate=0.001, malformed_rate=0, clock_jump_share=0, stuck_share=0, weak_share=0, hot_share=0
    )
    return SimulateSettings(
        gateways=GATEWAYS,
        packs_per_gateway=4,
        modules_per_pack=DEVICES // GATEWAYS // 4,
        cells=8,
        interval_seconds=1.0,
        seed=seed,
        faults=faults,
    )


class Stream:
    """The messages, tick by tick: in each, one of every device, in order."""

    def __init__(self, seed: int) -> None:
        self._run = Run(fleet(seed), EPOCH)
        self._ticks = self._run.ticks()
        self._random = random.Random(f"stream-{seed}")
        self._broken = 0
        self.event_time_us = 0
        """Of the last tick: of its earliest message."""

    def tick(self, *, plain: bool = False) -> Iterator[Message]:
        """The next tick; ``plain``: one good message a device and nothing else."""
        marked = next(self._ticks)
        self.event_time_us = self._run.start_us + int(marked.reported_us.min())
        sendings = list(zip(self._run.topics, self._run.payloads(marked), copies(marked).tolist(), strict=True))
        if plain:
            yield from ((topic, payload) for topic, payload, _ in sendings)
            return
        place = 0
        while place < len(sendings):
            topic, payload, count = sendings[place]
            if self._random.random() < MALFORMED_RATE:
                yield topic, self._malformed(payload)
            together = self._random.randint(2, 5) if self._random.random() < ARRAY_RATE else 1
            if together > 1:
                payload = self._array([p for t, p, _ in sendings[place : place + together] if _same(t, topic)])
                together = payload.count(b'"device_id"')
            for _ in range(count):
                yield topic, payload
            place += together

    def _array(self, payloads: list[bytes]) -> bytes:
        """Some messages as one, now and then with a broken one among them, as NDJSON or as an array."""
        if self._random.random() < 0.5:
            broken = b'{"broken element": %d}' % self._number()
            payloads.insert(self._random.randint(0, len(payloads)), broken)
        return b"\n".join(payloads) if self._random.random() < 0.5 else b"[" + b",".join(payloads) + b"]"

    def _malformed(self, payload: bytes) -> bytes:
        number = b"%d" % self._number()
        kinds = (
            b'{"number": ' + number + b", " + payload[1 : len(payload) // 2],  # cut off
            b'{"number": ' + number + b', "current_ampere": NaN}',
            b"\xff\xfe " + number,
            b'{"number": ' + number + b', "device_id": 7}',
            b'{"number": ' + number + b"}",
            b"[" + number + b"]",
        )
        return self._random.choice(kinds)

    def _number(self) -> int:
        self._broken += 1
        return self._broken


def _same(topic: str, other: str) -> bool:
    """Whether two topics are of one gateway."""
    return topic.split("/")[:3] == other.split("/")[:3]
