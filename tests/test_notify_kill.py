"""Alerts are told by a flow that is killed again and again: none is lost, each has one id, devices stay in order."""

import signal
import subprocess
import sys
from pathlib import Path

from alert_receiver import Receiver, hang_up, status, taken_then_cut
from bytewax.recovery import init_db_dir
from notify_flow import COUNT

#: How many alerts have been told when the flow is killed.
KILLS = (25, 60)
FLOW = Path(__file__).with_name("notify_flow.py")


def test_nothing_is_lost_by_kill_9(tmp_path):
    init_db_dir(tmp_path, 1)
    receiver = Receiver()
    receiver.script = [react for react in (status(503), hang_up, taken_then_cut) for _ in range(2)]
    command = [sys.executable, str(FLOW), receiver.url, str(tmp_path)]
    try:
        for kill_at in KILLS:
            process = subprocess.Popen(command)
            receiver.await_ids(kill_at, 60.0)
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
        assert subprocess.run(command, timeout=120).returncode == 0
    finally:
        receiver.stop()
    told = receiver.ids()
    wanted = [f"{k:03d}-{what}" for k in range(COUNT) for what in ("opened-alarm", "closed")]
    assert set(told) == set(wanted)
    assert len(told) - len(wanted) < sum(KILLS), "each start goes on where the last snapshot was"
    for device in range(3):
        first = list(dict.fromkeys(id_ for id_ in told if int(id_[:3]) % 3 == device))
        assert first == [id_ for id_ in wanted if int(id_[:3]) % 3 == device]
    assert {event["id"]: event for event in receiver.taken}.keys() == set(wanted)
    assert all(event == other for event in receiver.taken for other in receiver.taken if event["id"] == other["id"])
