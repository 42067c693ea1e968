import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from servers import has_mosquitto, missing

from voltmill.connectors.mqtt import MqttPartition, MqttSettings, MqttSource, Publisher
from voltmill.flows.broker import Kind, free_port, start_broker


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_messages_pass_with_late_acknowledgements(kind: Kind) -> None:
    if kind == "mosquitto" and not has_mosquitto():
        missing("Mosquitto")
    with start_broker(prefer=kind) as broker:
        assert broker.kind == kind
        settings = MqttSettings(host=broker.host, port=broker.port, protocol=broker.protocol, linger_ms=5)
        part: MqttPartition = MqttSource(settings).build_part("in", "voltmill/#", None)
        deadline = time.monotonic() + 20
        while not part.subscribed:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        got: list[bytes] = []
        with Publisher(settings, "test") as publisher:
            for k in range(1000):
                publisher.publish("voltmill/a", b"%d" % k)
            publisher.drain(60)
        deadline = time.monotonic() + 60
        while len(got) < 1000:
            assert time.monotonic() < deadline
            for batch in part.next_batch():
                got += batch["payload"].to_pylist()
            time.sleep(0.002)
        part.snapshot()
        part.next_batch()
        part.close()
    assert got == [b"%d" % k for k in range(1000)]
    assert broker.process.poll() is not None
    assert not broker.folder.exists()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be used"):
            start_broker(port)


def test_it_listens_where_it_was_told() -> None:
    port = free_port()
    with start_broker(port) as broker:
        assert broker.port == port
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child only on Linux")
def test_it_dies_with_its_parent() -> None:
    code = (
        "from voltmill.flows.broker import start_broker; b = start_broker(); print(b.process.pid, flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
