"""Nothing lost, nothing twice: random interleavings of all that can happen between broker, flow, lake and database.

The broker is a model to the letter of MQTT, the engine one of what Bytewax promises (``delivery``); the
source, its client, decode, quality, the lake's sink and the database are the ones that run.
"""

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from delivery import SCHEMAS, Killed, Life, World, message
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from voltmill.connectors.sql import read_rows
from voltmill.kernels.schema import Quality

TOPICS = ("a/#", "b/#")
ALL = 1 << 20
MOST_COPIES = 3  # of one message: fewer than there are packet ids, see mqtt_model

topics = st.sampled_from([TOPICS[0], *TOPICS])  # one sees more than the other, so that its steps meet


class Delivery(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="voltmill-", dir=memory if memory.is_dir() else None))
        self.ledger: dict[str, list[bytes]] = {topic: [] for topic in TOPICS}

    @initialize(
        shards=st.integers(1, 3),
        protocol=st.sampled_from(["5", "3.1.1"]),
        ids=st.sampled_from([MOST_COPIES + 1, 5, 9]),
        rows=st.sampled_from([1, 4, 1000]),
        kept=st.sampled_from([0, 1 << 20]),
    )
    def begin(self, shards: int, protocol: str, ids: int, rows: int, kept: int) -> None:
        lake = {"max_file_rows": rows, "max_snapshot_bytes": kept}
        self.world = World(self.folder, topics=TOPICS, shards=shards, protocol=protocol, ids=ids, lake=lake)
        self.life = Life(self.world)

    @rule(topic=topics, device=st.sampled_from("xyz"), count=st.integers(1, 4), read=st.booleans())
    def publish(self, topic: str, device: str, count: int, read: bool) -> None:
        """``read``: each is a batch of its own."""
        for _ in range(count):
            self._publish(topic, message(f"{topic[0]}/{device}", len(self.ledger[topic])))
            if read:
                self.run(topic)

    @rule(topic=topics)
    def publish_nonsense(self, topic: str) -> None:
        self._publish(topic, b"what? %d" % len(self.ledger[topic]))

    @rule(topic=topics, which=st.integers(0, 10))
    def publish_once_more(self, topic: str, which: int) -> None:
        sent = self.ledger[topic]
        recent = sent[-1 - which % len(sent)] if sent else b""
        if recent and sent.count(recent) < MOST_COPIES:
            self._publish(topic, recent)

    @rule(topic=topics, size=st.sampled_from([1, 60, 500, ALL, ALL]))
    def network(self, topic: str, size: int) -> None:
        self.life.wire(topic).exchange(size)

    @rule(topic=topics)
    def read_a_batch(self, topic: str) -> None:
        self.life.batch(topic)

    @rule(topic=topics, race=st.booleans())
    def run(self, topic: str, race: bool = False) -> None:
        """``race``: the network thread gets its turn after the worker has looked for confirmations."""
        wire = self.life.wire(topic)
        wire.exchange(ALL)
        wire.hidden = race
        self.life.batch(topic)
        wire.hidden = False

    @rule()
    def commit(self) -> None:
        self.life.epoch()

    @rule(topic=topics, arrives=st.booleans())
    def lose_the_connection(self, topic: str, arrives: bool) -> None:
        self.life.wire(topic).cut(arrives)

    @rule(arrives=st.booleans())
    def kill(self, arrives: bool) -> None:
        self.life.die(arrives)
        self._start()

    @rule()
    def kill_before_the_snapshot_is_durable(self) -> None:
        self.life.snapshot()
        self.kill(arrives=True)

    @rule()
    def kill_before_the_acknowledgement(self) -> None:
        self.life.epoch()
        self.kill(arrives=True)

    @rule(topic=topics, place=st.sampled_from(["source", "dead_letters", "sql", "telemetry"]), arrives=st.booleans())
    def kill_within_a_batch(self, topic: str, place: str, arrives: bool) -> None:
        self.life.wire(topic).exchange(ALL)
        try:
            self.life.batch(topic, place)
        except Killed:
            self.kill(arrives)

    @rule(closed=st.booleans())
    def drain(self, closed: bool) -> None:
        """``closed``: else it is killed when all is durable, before the sinks are closed."""
        self.life.drain.request()
        ended: set[str] = set()
        for _ in range(3):  # the epoch that runs, the one that acknowledges, and none more
            for topic in set(TOPICS) - ended:
                self.life.wire(topic).exchange(ALL)
                try:
                    self.life.batch(topic)
                except StopIteration:
                    ended.add(topic)
                    self.life.awoken.pop(("source", topic))
            self.life.epoch()
        assert ended == set(TOPICS)
        if closed:
            self.life.close()
        else:
            self.life.die()
        self._start()

    def teardown(self) -> None:
        try:
            if hasattr(self, "life"):
                self._finish()
                self._check()
        finally:
            if hasattr(self, "life"):
                self.life.die()
            shutil.rmtree(self.folder)

    def _start(self) -> None:
        self.life = Life(self.world)
        for (table, shard), state in self.life.states.items():
            if table in SCHEMAS:
                _, sequence, _, _, kept = state
                assert self.world.numbers(table, shard) == list(range(sequence + bool(kept))), "an orphan, or a gap"

    def _publish(self, topic: str, payload: bytes) -> None:
        self.ledger[topic].append(payload)
        self.world.sessions[topic].queue.append((f"{topic[0]}/gateway", payload))

    def _finish(self) -> None:
        """All is delivered and drained; then the flow starts once more, and nothing comes again."""
        for _ in range(200):
            if all(session.idle for session in self.world.sessions.values()):
                break
            for topic in TOPICS:
                self.run(topic)
            self.life.epoch()
        assert all(session.idle for session in self.world.sessions.values()), "not all is acknowledged"
        self.drain(closed=True)
        known = self.world.again
        for topic in TOPICS:
            self.run(topic)
            assert self.life.parts[topic]._delivered.offset == len(self.ledger[topic])
        assert self.world.again == known

    def _check(self) -> None:
        telemetry, letters = self.world.rows("telemetry"), self.world.rows("dead_letters")
        found: dict[str, dict[int, Any]] = {topic: {} for topic in TOPICS}
        for row in telemetry + letters:
            at = found[row["source_partition"]]
            assert row["source_offset"] not in at, f"offset {row['source_offset']} is there twice"
            at[row["source_offset"]] = row
        accepted = []
        for topic, sent in self.ledger.items():
            rows = [found[topic][offset] for offset in sorted(found[topic])]
            assert [row["source_offset"] for row in rows] == list(range(len(sent)))
            copies: Counter[bytes] = Counter()
            for payload, row in zip(sent, rows, strict=True):
                if "reason" in row:
                    assert row["payload"] == payload
                else:
                    assert message(row["device_id"], row["seq"]) == payload
                    again = copies[payload] > 0
                    assert row["quality_bits"] & Quality.DUPLICATE == (Quality.DUPLICATE if again else 0)
                    accepted += [] if again else [row]
                copies[payload] += 1
        self._check_database(accepted)

    def _check_database(self, accepted: list[dict[str, Any]]) -> None:
        names = ("device_id", "event_time", "source_partition", "source_offset")
        stored = read_rows(self.world.sql.settings).to_pylist()
        places = [tuple(row[name] for name in names) + (row["value"],) for row in stored]
        wanted = [tuple(row[name] for name in names) + (float(row["seq"]),) for row in accepted]
        assert sorted(places) == sorted(wanted)


Delivery.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestDelivery = Delivery.TestCase
