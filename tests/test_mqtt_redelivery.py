"""What the broker sends again is known: with a real Mosquitto, killed flows and cut connections."""

import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from chaos.proxy import Proxy
from mqtt_parts import commit, numbers, offsets, payloads, publish, read, settings_for, until
from servers import Mosquitto

from voltmill.connectors.drain import Drain
from voltmill.connectors.mqtt import MqttPartition, MqttSettings, MqttSource

Start = Callable[..., Mosquitto]


class Flow:
    """A partition, the way the engine drives it through lives that end at any moment."""

    def __init__(self, settings: MqttSettings) -> None:
        self.settings = settings
        self.again = 0
        self.drain = Drain()
        self.durable: Any = None
        self.part = self.start()

    def start(self) -> MqttPartition:
        def count(messages: int) -> None:
            self.again += messages

        source = MqttSource(self.settings, drain=self.drain, on_redelivered=count)
        state = pickle.loads(pickle.dumps(self.durable))
        self.part = source.build_part("in", self.settings.topics[0], state)
        until(lambda: self.part.subscribed)
        return self.part

    def save(self) -> None:
        """A snapshot that is durable, of which the partition does not know yet."""
        self.durable = self.part.snapshot()

    def kill(self) -> None:
        """End without a word: what is not acknowledged never will be, and the connection breaks."""
        self.part._client.acknowledge = lambda receipt: None
        self.part.close()

    def read(self, count: int) -> list[bytes]:
        return payloads(read(self.part, count))

    def until_again(self, count: int) -> None:
        """Until so many messages were recognised; none may be handed out."""
        until(lambda: self.part.next_batch() == [] and self.again >= count)
        assert self.again == count


@pytest.fixture(scope="module")
def broker(mosquitto: Start) -> Mosquitto:
    return mosquitto()


@pytest.fixture
def flow() -> Iterator[Callable[[MqttSettings], Flow]]:
    flows: list[Flow] = []

    def make(settings: MqttSettings) -> Flow:
        flows.append(Flow(settings))
        return flows[-1]

    yield make
    for one in flows:
        one.part.close()


@pytest.fixture
def proxied(broker: Mosquitto) -> Iterator[tuple[Proxy, Callable[..., MqttSettings]]]:
    """A proxy before the broker, and settings that lead through it."""
    proxy = Proxy(broker.port)
    yield proxy, lambda name, **options: settings_for(broker, name, **{"port": proxy.port} | options)
    proxy.close()


def left_with(settings: MqttSettings) -> list[bytes]:
    """What the broker still keeps for the session; a flow without state takes it."""
    last = Flow(settings)
    publish(settings, settings.topics[0].replace("#", "end"), [b"end"])
    got: list[bytes] = []
    while b"end" not in got:
        got += last.read(1)
    commit(last.part)
    last.part.close()
    return got[:-1]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_killed_between_commit_and_puback_nothing_comes_twice(
    broker: Mosquitto, flow: Callable[..., Flow], protocol: str
) -> None:
    settings = settings_for(broker, f"window{protocol}", protocol=protocol)
    topic = f"window{protocol}/a"
    one = flow(settings)
    publish(settings, topic, numbers(30))
    assert one.read(30) == numbers(30)
    one.save()
    one.kill()
    one.start()
    one.until_again(30)
    publish(settings, topic, numbers(20, 30))
    batches = read(one.part, 20)  # not durable when it is killed: these do come again
    assert offsets(batches) == list(range(30, 50))
    one.kill()
    one.start()
    batches = read(one.part, 20)
    assert payloads(batches) == numbers(20, 30) and offsets(batches) == list(range(30, 50))
    assert one.again == 30
    commit(one.part)
    one.part.close()
    assert left_with(settings) == []


def test_a_cut_connection_brings_nothing_twice(
    proxied: tuple[Proxy, Callable[..., MqttSettings]], flow: Callable[..., Flow]
) -> None:
    proxy, settings_by = proxied
    settings = settings_by("cut")
    one = flow(settings)
    publish(settings, "cut/a", [*numbers(9), b"0"])  # the last equals the first, under another packet id
    assert one.read(10) == [*numbers(9), b"0"]
    for again in (10, 20):
        proxy.drop(1.0, random.Random())
        one.until_again(again)
    publish(settings, "cut/a", numbers(5, 10))
    assert one.read(5) == numbers(5, 10)
    commit(one.part)  # over the third connection
    until(lambda: one.part.next_batch() == [] and one.part.snapshot()[2] == b"")  # and the broker has read it
    proxy.drop(1.0, random.Random())
    publish(settings, "cut/a", [b"after"])
    assert one.read(1) == [b"after"]
    assert one.again == 20
    assert one.part.snapshot()[1] == 16
    commit(one.part)
    one.part.close()
    assert left_with(settings) == []


def test_what_became_durable_while_the_connection_was_away_is_acknowledged_at_its_return(
    proxied: tuple[Proxy, Callable[..., MqttSettings]], flow: Callable[..., Flow]
) -> None:
    proxy, settings_by = proxied
    settings = settings_by("away", timeout_seconds=0.3)
    one = flow(settings)
    publish(settings, "away/a", numbers(10))
    assert one.read(10) == numbers(10)
    proxy.lose()
    commit(one.part)  # these acknowledgements arrive nowhere
    until(lambda: not one.part._client.is_connected())
    proxy.restore()
    one.until_again(10)
    one.part.close()
    assert left_with(settings) == []


def test_copies_that_wait_in_the_inbox_are_handed_out_once(
    proxied: tuple[Proxy, Callable[..., MqttSettings]], flow: Callable[..., Flow]
) -> None:
    proxy, settings_by = proxied
    settings = settings_by("waiting")
    one = flow(settings)
    publish(settings, "waiting/a", numbers(40))
    until(lambda: one.part.queued == 40)
    for copies in (80, 120):
        proxy.drop(1.0, random.Random())
        until(lambda copies=copies: one.part.queued == copies)
    assert one.read(40) == numbers(40)
    one.until_again(80)
    commit(one.part)
    one.part.close()
    assert left_with(settings) == []


def test_it_drains_after_a_cut_connection(
    proxied: tuple[Proxy, Callable[..., MqttSettings]], flow: Callable[..., Flow]
) -> None:
    proxy, settings_by = proxied
    settings = settings_by("drained")
    one = flow(settings)
    publish(settings, "drained/a", numbers(10))
    assert one.read(10) == numbers(10)
    proxy.drop(1.0, random.Random())
    one.until_again(10)
    one.drain.request()
    assert one.part.next_batch() == []
    one.part.snapshot()
    with pytest.raises(StopIteration):
        one.part.next_batch()
    one.part.close()
    assert left_with(settings) == []


def test_two_partitions_know_their_own_messages(broker: Mosquitto, flow: Callable[..., Flow]) -> None:
    first, second = (settings_for(broker, "each", topics=(f"each/{name}/#",)) for name in "ab")
    flows = [flow(first), flow(second)]
    for settings in (first, second):  # the same packet ids, 1 to 10, on both
        publish(settings, settings.topics[0].replace("#", "m"), numbers(10))
    for one in flows:
        assert one.read(10) == numbers(10)
    flows[0].save()
    for one in flows:
        one.kill()
        one.start()
    flows[0].until_again(10)
    assert flows[1].read(10) == numbers(10) and flows[1].again == 0


def test_a_restarted_broker_brings_nothing_twice(mosquitto: Start, flow: Callable[..., Flow]) -> None:
    broker = mosquitto(persistence=True)
    settings = settings_for(broker, "persistent")
    one = flow(settings)
    publish(settings, "persistent/a", numbers(20))
    assert one.read(20) == numbers(20)
    broker.stop()
    broker.start()
    one.until_again(20)
    commit(one.part)
    one.save()
    one.part.close()
    assert left_with(settings) == []


def test_a_broker_that_forgot_its_sessions_starts_the_packet_ids_anew(
    mosquitto: Start, flow: Callable[..., Flow]
) -> None:
    broker = mosquitto()
    settings = settings_for(broker, "anew")
    one = flow(settings)
    publish(settings, "anew/a", [b"same"] * 5)
    assert one.read(5) == [b"same"] * 5
    broker.stop()
    broker.start()
    until(lambda: one.part._client._connection == 2 and one.part.subscribed)
    publish(settings, "anew/a", [b"same"] * 5)  # ids 1 to 5 once more
    assert one.read(5) == [b"same"] * 5
    assert one.again == 0


def test_a_packet_id_that_comes_round_with_the_same_bytes_is_another_message(
    broker: Mosquitto, flow: Callable[..., Flow]
) -> None:
    settings = settings_for(broker, "round")
    one = flow(settings)
    ids = 65_535
    publish(settings, "round/a", [b"same"] * ids)
    assert len(one.read(ids)) == ids
    assert len(one.part.snapshot()[2]) == 2 * ids
    one.part.next_batch()  # acknowledged
    until(lambda: one.part.next_batch() == [] and one.part.snapshot()[2] == b"")  # and known to be so
    one.save()
    publish(settings, "round/a", [b"same"])
    until(lambda: one.part.queued == 1)
    one.kill()  # not handed out: it comes with the DUP flag, under the id of the very first
    one.start()
    assert one.read(1) == [b"same"]
    assert one.again == 0


def settings_as_shipped(settings: MqttSettings) -> MqttSettings:
    default = MqttSettings()
    names = ("timeout_seconds", "reconnect_min_seconds", "reconnect_max_seconds", "keepalive_seconds")
    return msgspec.structs.replace(settings, **{name: getattr(default, name) for name in names})


def seconds_until_it_works(one: Flow, broker: Mosquitto) -> float:
    began = time.monotonic()
    publish(settings_for(broker, "probe"), one.settings.topics[0].replace("#", "b"), [b"works"])
    until(lambda: b"works" in payloads(one.part.next_batch()))
    return time.monotonic() - began


@pytest.mark.parametrize("seconds", [1.0, 6.0])
def test_it_works_within_5_s_of_the_return_of_a_paused_broker(
    mosquitto: Start, flow: Callable[..., Flow], seconds: float
) -> None:
    broker = mosquitto()
    one = flow(settings_as_shipped(settings_for(broker, "paused")))
    publish(one.settings, "paused/a", numbers(10))
    assert one.read(10) == numbers(10)
    assert broker._process is not None
    broker._process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    assert one.part.next_batch() == []
    broker._process.send_signal(signal.SIGCONT)
    assert seconds_until_it_works(one, broker) < 5
    assert one.part.snapshot()[1] == 11


def test_it_works_within_5_s_after_its_connection_fell_silent(
    broker: Mosquitto, proxied: tuple[Proxy, Callable[..., MqttSettings]], flow: Callable[..., Flow]
) -> None:
    proxy, settings_by = proxied
    one = flow(settings_as_shipped(settings_by("silent")))
    publish(settings_for(broker, "probe"), "silent/a", numbers(10))
    assert one.read(10) == numbers(10)
    proxy.lose()
    proxy.restore()  # other connections work, this one says nothing more
    assert seconds_until_it_works(one, broker) < 5
    proxy.lose()
    time.sleep(4)  # now it is trying to connect
    proxy.restore()
    assert seconds_until_it_works(one, broker) < 5
    assert one.part.snapshot()[1] == 12


def test_it_works_within_5_s_of_the_return_of_a_stopped_broker(mosquitto: Start, flow: Callable[..., Flow]) -> None:
    broker = mosquitto(persistence=True)
    one = flow(settings_as_shipped(settings_for(broker, "stopped")))
    broker.stop()
    time.sleep(3)
    broker.start()
    assert seconds_until_it_works(one, broker) < 5


def test_states_of_other_versions(broker: Mosquitto, tmp_path: Path) -> None:
    source = MqttSource(settings_for(broker, "version"))
    part = source.build_part("in", "version/#", ("v1", 7))
    assert part.snapshot() == ("v2", 7, b"", b"")
    part.close()
    for state, name in [
        (("v0", 1), "'v0'"),
        (("v3", 1, b"", b""), "'v3'"),
        (("v2", 1, b"12", b""), "'v2'"),
        (("v2", 1), "'v2'"),
        ((), "'\\(\\)'"),
    ]:
        with pytest.raises(ValueError, match=f"version {name}, this release reads v1 and v2"):
            source.build_part("in", "version/#", state)
