"""Alerts on their way to people: against a real receiver that refuses, hangs, cuts and asks for pauses."""

import base64
import hashlib
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import bytewax.operators as op
import msgspec
import pytest
from alert_receiver import Receiver, hang, hang_up, status, taken_then_cut
from alert_rows import alerts, closed, noticed, opened
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource

from voltmill.connectors import notify_http
from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.connectors.notify import Place, notify
from voltmill.connectors.notify_http import signature
from voltmill.connectors.notify_notice import notices
from voltmill.connectors.notify_outbox import MOST_SETTLED, Outbox
from voltmill.connectors.notify_places import HubSettings, WebhookSettings
from voltmill.connectors.notify_settings import NotifySettings
from voltmill.flows.broker import free_port
from voltmill.flows.metrics import Metrics

SECRET = "S3cr3t/4711+with=signs"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.stop()


def settings(url: str = "http://127.0.0.1:9/", **given: Any) -> NotifySettings:
    hook = {name: given.pop(name) for name in ("headers", "signing_secret", "origin", "ca_file") if name in given}
    usual = {"name": "duty", "first_pause_seconds": 0.02, "longest_pause_seconds": 0.1, "timeout_seconds": 5.0}
    return NotifySettings(**{**usual, "webhook": WebhookSettings(url=url, **hook), **given})


class Told:
    """A place whose outbox is filled by hand."""

    def __init__(self, given: NotifySettings, state: Any = None) -> None:
        self.outcomes, self.attempts = Counter[str](), Counter[str]()
        self.open: list[bool] = []
        self.waiting = 0
        self.place = Place(
            given,
            MqttSettings(),
            observe=lambda outcome, count: self.outcomes.update({outcome: count}),
            on_attempt=lambda outcome, seconds: self.attempts.update([outcome]),
            on_waiting=self._more,
            on_open=self.open.append,
        )
        self.outbox = self.place.outbox(state)
        self.sender = self.place.sender(self.outbox)

    def _more(self, count: int) -> None:
        self.waiting += count

    def tell(self, *rows: dict[str, Any]) -> None:
        self.outbox.offer(noticed(*rows, now=time.time()))

    def done(self) -> None:
        assert self.outbox.wait_empty(30.0), (self.outcomes, self.attempts)
        until = time.monotonic() + 10  # what is observed follows what is settled
        while self.outcomes.total() < self.attempts["ok"] and time.monotonic() < until:
            time.sleep(0.005)


@pytest.fixture
def told() -> Iterator[Callable[..., Told]]:
    made: list[Told] = []

    def make(*given: Any, **more: Any) -> Told:
        made.append(Told(*given, **more))
        return made[-1]

    yield make
    for each in made:
        each.sender.close(10.0)


# --- in a flow ------------------------------------------------------------------------------------


def flow(place: Place, batches: Sequence[Any]) -> Dataflow:
    made = Dataflow("alerts")
    stream = op.input("alerts", made, TestingSource(list(batches)))
    notify("duty", op.key_on("shard", stream, lambda _: "00"), place=place)
    return made


def test_a_flow_tells_in_order_and_each_once(run_flow, receiver):
    metrics = Metrics()
    place = Place(settings(receiver.url), MqttSettings(), **metrics.notify("duty"))
    rows = [opened("a"), opened("b", severity="warning"), closed("a"), closed("b", severity="warning")]
    run_flow(flow(place, [alerts(rows[:2]), alerts(rows[:3]), alerts(rows[3:])]))
    assert receiver.ids() == ["a-opened-alarm", "b-opened-warning", "a-closed", "b-closed"]

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"place": "duty", **labels})

    assert value("voltmill_notifications_total", outcome="sent") == 4
    assert value("voltmill_notifications_total", outcome="duplicate") == 2
    assert value("voltmill_notification_seconds_count", outcome="ok") == 4
    assert value("voltmill_notifications_waiting") == 0


def test_two_workers_keep_each_device_in_order(run_flow, receiver):
    place = Place(settings(receiver.url), MqttSettings())
    rows = [make(f"{k:02d}", f"m-{k % 4}") for k in range(24) for make in (opened, closed)]
    made = Dataflow("alerts")
    stream = op.input("alerts", made, TestingSource([alerts([row]) for row in rows]))
    keyed = op.key_on("shard", stream, lambda batch: batch.column("device_id")[0].as_py())
    notify("duty", keyed, place=place)
    run_flow(made, workers=2)
    wanted = [f"{k:02d}-{what}" for k in range(24) for what in ("opened-alarm", "closed")]
    told = receiver.ids()
    assert sorted(told) == sorted(wanted)
    for device in range(4):
        assert [x for x in told if int(x[:2]) % 4 == device] == [x for x in wanted if int(x[:2]) % 4 == device]


def test_a_receiver_that_hangs_holds_up_nothing(run_flow, receiver):
    receiver.usual = hang
    place = Place(settings(receiver.url, timeout_seconds=60.0), MqttSettings())
    passed: list[float] = []
    made = Dataflow("alerts")
    stream = op.input("alerts", made, TestingSource([alerts([opened(str(k))]) for k in range(50)]))
    stream = op.inspect("passes", stream, lambda *_: passed.append(time.monotonic()))
    notify("duty", op.key_on("shard", stream, lambda _: "00"), place=place)
    began = time.monotonic()
    place._drain_until = began + 1.0  # what is waited at the end
    run_flow(made)
    assert len(passed) == 50 and passed[-1] - began < 30.0
    assert len(receiver.requests) <= 1 and receiver.ids() == []


def test_what_waits_is_sent_after_a_restart_and_nothing_twice(run_flow, receiver, tmp_path):
    down = settings(f"http://127.0.0.1:{free_port()}/hook", first_pause_seconds=30.0, longest_pause_seconds=60.0)
    run_flow(flow(Place(down, MqttSettings()), [alerts([opened("a"), closed("a")])]), recovery=tmp_path / "state")
    up = settings(receiver.url)
    run_flow(flow(Place(up, MqttSettings()), []), recovery=tmp_path / "state")
    assert receiver.ids() == ["a-opened-alarm", "a-closed"]
    run_flow(flow(Place(up, MqttSettings()), [alerts([opened("a")])]), recovery=tmp_path / "state")
    assert receiver.ids() == ["a-opened-alarm", "a-closed"]


def test_what_was_sent_leaves_the_snapshot_although_no_further_alert_comes(run_flow, receiver):
    """The operator wakes itself: else an alert would be sent again after a crash a week later."""
    place = Place(settings(receiver.url), MqttSettings())
    kept, at_end = [], []
    outbox = place.outbox(None)
    place.outbox = lambda state: outbox
    take = outbox.snapshot

    def snapshot() -> Any:
        kept.append((len(outbox), take()))
        return kept[-1][1]

    outbox.snapshot = snapshot
    made = Dataflow("alerts")

    def items() -> Iterator[Any]:
        yield alerts([opened("a")])
        until = time.monotonic() + 30
        while not (len(kept) > 1 and kept[-1][0] == 0) and time.monotonic() < until:
            time.sleep(0.02)
            yield None
        at_end.extend(kept)  # the end of the stream stores it once more

    stream = op.flat_map("rows", op.input("alerts", made, TestingSource(items())), lambda x: [x] if x else [])
    notify("duty", op.key_on("shard", stream, lambda _: "00"), place=place)
    run_flow(made)
    assert len(at_end) > 1 and at_end[-1][0] == 0 and b"a-opened-alarm" in at_end[-1][1][1]


# --- what a receiver may do -----------------------------------------------------------------------


@pytest.mark.parametrize("react", [status(503), status(429), status(500), status(408), hang_up])
def test_what_may_pass_is_sent_again_under_the_same_id(told, receiver, react):
    receiver.script = [react, react]
    place = told(settings(receiver.url))
    place.tell(opened("a"), opened("b"))
    place.done()
    assert receiver.ids() == ["a-opened-alarm", "b-opened-alarm"]
    sent = [json.loads(body)["id"] for *_, body in receiver.requests]
    assert sent == ["a-opened-alarm"] * 3 + ["b-opened-alarm"]
    assert place.outcomes == {"sent": 2} and place.open == [True, False] and place.waiting == 0


def test_a_lost_answer_makes_a_copy_under_the_same_id(told, receiver):
    receiver.script = [taken_then_cut]
    place = told(settings(receiver.url))
    place.tell(opened("a"))
    place.done()
    assert receiver.ids() == ["a-opened-alarm", "a-opened-alarm"]
    assert receiver.taken[0] == receiver.taken[1]


def test_a_receiver_that_hangs_is_given_up_in_time(told, receiver):
    receiver.script = [hang]
    place = told(settings(receiver.url, timeout_seconds=0.2))
    place.tell(opened("a"))
    place.done()
    assert place.attempts == {"timeout": 1, "ok": 1}


def test_retry_after_is_heeded_beyond_the_longest_pause(told, receiver):
    receiver.script = [status(429, Retry_After="1")]
    place = told(settings(receiver.url))
    began = time.monotonic()
    place.tell(opened("a"))
    place.done()
    assert time.monotonic() - began >= 1.0 and receiver.ids() == ["a-opened-alarm"]


def test_retry_after_may_be_a_date(told, receiver):
    until = datetime.now(UTC) + timedelta(seconds=3600)
    receiver.script = [status(503, Retry_After=format_datetime(until, usegmt=True))]
    place = told(settings(receiver.url))
    place.tell(opened("a"))
    receiver.await_requests(1)
    deadline = time.monotonic() + 10
    while place.place.gate.remaining < 3500 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert 3500 < place.place.gate.remaining <= 3600


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 413, 422, 302])
def test_a_refusal_for_good_is_set_aside(told, receiver, code, caplog):
    receiver.script = [status(code, b"no")]
    place = told(settings(receiver.url))
    place.tell(opened("a"), opened("b"))
    place.done()
    assert receiver.ids() == ["b-opened-alarm"] and len(receiver.requests) == 2
    assert place.outcomes == {f"refused_{code}": 1, "sent": 1}
    lines = [r.getMessage() for r in caplog.records if "set aside" in r.getMessage()]
    assert len(lines) == 1 and "a-opened-alarm" in lines[0] and "OVER_TEMP_ALARM on" in lines[0]
    assert place.open == ([] if code in (400, 413, 422) else [True, False])


def test_one_that_the_receiver_fails_on_does_not_hold_up_the_others(told, receiver):
    receiver.usual = lambda h: h.send(500 if b'"a-opened' in h.server.requests[-1][3] else 204)
    place = told(settings(receiver.url, attempts=3))
    place.tell(opened("a"), opened("b"))
    place.done()
    assert receiver.ids() == ["b-opened-alarm"] and place.outcomes == {"refused_500": 1, "sent": 1}
    assert place.attempts == {"500": 3, "ok": 1}


def test_a_place_that_is_down_is_asked_less_and_less(told):
    place = told(settings(f"http://127.0.0.1:{free_port()}/", first_pause_seconds=0.1, longest_pause_seconds=60.0))
    began = time.monotonic()
    place.tell(*(opened(str(k)) for k in range(20)))
    while place.attempts["connection"] < 3 and time.monotonic() < began + 30:
        time.sleep(0.005)
    assert 0.3 <= time.monotonic() - began < 30
    assert place.waiting == 20 and place.open == [True]


def test_a_connection_that_idled_is_not_trusted(told, receiver, monkeypatch):
    """What lies between may have forgotten it: the next alert would go nowhere until its time is over."""
    ports = set()
    receiver.usual = lambda handler: (ports.add(handler.client_address), handler.send(204))
    place = told(settings(receiver.url))
    for idle in (30.0, 30.0, 0.0):
        monkeypatch.setattr(notify_http, "IDLE_SECONDS", idle)
        place.tell(opened(str(place.attempts.total())))
        place.done()
        assert len(ports) == (1 if idle else 2)


def test_tls_with_an_authority_of_our_own(told, certificates):
    receiver = Receiver(certificates)
    try:
        place = told(settings(receiver.url, ca_file=certificates.ca_file))
        place.tell(opened("a"))
        place.done()
        unknown = told(settings(receiver.url, timeout_seconds=2.0))
        unknown.tell(opened("b"))
        deadline = time.monotonic() + 10
        while not unknown.attempts and time.monotonic() < deadline:
            time.sleep(0.01)
        assert unknown.attempts["connection"] and receiver.ids() == ["a-opened-alarm"]
    finally:
        receiver.stop()


# --- what goes over the wire ----------------------------------------------------------------------


def test_headers_and_signature(told, receiver):
    key = bytes(range(32))
    given = settings(
        f"{receiver.url}?sig=abc",
        headers={"Authorization": f"Bearer {SECRET}"},
        signing_secret=f"whsec_{base64.b64encode(key).decode()}",
        origin="plant-1.example.com",
    )
    place = told(given)
    place.tell(opened("a"))
    place.done()
    ((method, path, headers, body),) = receiver.requests
    assert (method, path) == ("POST", "/hook?sig=abc")
    assert headers["Content-Type"] == "application/cloudevents+json"
    assert headers["Authorization"] == f"Bearer {SECRET}" and headers["WebHook-Request-Origin"] == "plant-1.example.com"
    assert headers["webhook-id"] == json.loads(body)["id"] == "a-opened-alarm"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"


def test_the_signature_is_that_of_the_specification():
    """The example of the reference implementations of Standard Webhooks."""
    key = WebhookSettings(url="http://x/", signing_secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").signing_key()
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_examples_of_the_page_are_what_is_sent():
    page = (Path(__file__).parents[1] / "docs/notify.md").read_text()
    event = json.loads(page.split("```json event opened\n")[1].split("```")[0])
    template = json.loads(page.split("```json template\n")[1].split("```")[0])
    (notice,) = noticed(opened())
    assert json.loads(notice.cloud_event("urn:voltmill")) == event
    assert json.loads(notice.template()) == template
    (end,) = noticed(closed())
    assert f"    {end.text}\n" in page and json.loads(end.cloud_event("x"))["type"] == "voltmill.alert.closed"


def test_what_is_not_known_is_null_and_left_out_of_the_words():
    (notice,) = noticed(opened(value=float("nan"), limit=None))
    assert notice.text == "OVER_TEMP_ALARM on site-a/rack-1/module-7: since 2026-11-22 10:02:03Z"
    data = json.loads(notice.cloud_event("x"))["data"]
    assert data["value"] is None and data["limit"] is None
    assert all(isinstance(value, str) for value in json.loads(notice.template()).values())


def test_a_notification_fits_a_phone():
    (notice,) = noticed(closed("f" * 64, "\u00e4" * 128, code="C" * 60))
    assert len(notice.template()) < 2048


def test_rows_of_another_schema_are_refused():
    with pytest.raises(ValueError, match="ALERT"):
        list(notices(alerts([opened()]).drop_columns(["value"]), 0.0))


# --- which are told -------------------------------------------------------------------------------


def ids(outbox: Outbox) -> list[str]:
    return [row[0] + ("-closed" if row[5] else f"-{row[3]}") for row in msgspec.json.decode(outbox.snapshot()[1])[0]]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ["a-warning", "b-critical", "a-closed"]),
        ({"severity": "alarm"}, ["b-critical"]),
        ({"on": ("closed",)}, ["a-closed"]),
        ({"devices": ("site-b/*",)}, ["b-critical"]),
        ({"codes": ("OVER_*",)}, ["a-warning", "a-closed"]),
        ({"codes": ("OVER_*",), "devices": ("site-b/*",)}, []),
    ],
)
def test_filters(given, wanted):
    outbox = Outbox(settings(**given), None)
    rows = [opened("a", severity="warning"), opened("b", "site-b/1", code="VOLT", severity="critical")]
    outbox.offer(noticed(*rows, closed("a", severity="warning")))
    assert ids(outbox) == wanted


def test_an_alert_that_rises_is_told_once_a_severity_and_its_end_to_whom_it_was_told():
    outbox = Outbox(settings(severity="alarm"), None)
    rising = [opened("a", severity=s) for s in ("warning", "alarm", "warning", "critical", "alarm")]
    outbox.offer(noticed(*rising, closed("a", severity="warning"), closed("b", severity="warning")))
    assert ids(outbox) == ["a-alarm", "a-critical", "a-closed"]


def test_what_matters_least_is_dropped_first():
    lost = Counter[str]()
    outbox = Outbox(settings(most_waiting=10), None, observe=lambda outcome, n: lost.update({outcome: n}))
    (before,) = noticed(opened("told"))
    outbox.offer([before])
    outbox.settle(before)
    outbox.offer(noticed(closed("told")))
    outbox.offer(noticed(opened("over", severity="critical"), closed("over", severity="critical")))
    outbox.offer(noticed(opened("up", severity="warning"), opened("up", severity="critical")))
    outbox.offer(noticed(*(opened(str(k), severity="warning") for k in range(6))))
    assert len(outbox) == 9 and lost == {"dropped": 2} and not any("over" in x for x in ids(outbox))
    outbox.offer(noticed(*(opened(f"n{k}", severity="alarm") for k in range(9))))
    left = ids(outbox)
    assert "told-closed" in left and "up-critical" in left and "up-warning" not in left and len(left) <= 10


def test_a_storm_costs_the_stream_little():
    outbox = Outbox(settings(), None)
    rows = noticed(*(opened(str(k)) for k in range(20_000)))
    began = time.process_time()
    outbox.offer(rows)
    assert time.process_time() - began < 2.0 and len(outbox) <= 1000


def test_what_is_too_old_is_not_sent_any_more():
    lost, now = Counter[str](), [1000.0]
    outbox = Outbox(settings(give_up_seconds=60.0), None, observe=lambda o, n: lost.update({o: n}), now=lambda: now[0])
    outbox.offer(noticed(opened("a"), now=1000.0))
    outbox.offer(noticed(opened("b"), now=1050.0))
    now[0] = 1061.0
    taken = outbox.take(0.0)
    assert taken is not None and taken.alert_id == "b" and lost == {"expired": 1}


def test_the_memory_of_what_was_sent_is_bounded():
    now = [0.0]
    outbox = Outbox(settings(most_waiting=100_000), None, now=lambda: now[0])
    for notice in noticed(*(opened(str(k)) for k in range(MOST_SETTLED + 10))):
        outbox.offer([notice])
        outbox.settle(notice)
    state = outbox.snapshot()
    assert len(msgspec.json.decode(state[1])[1]) == MOST_SETTLED and len(state[1]) < 300_000
    now[0] = 40 * 86_400.0
    assert msgspec.json.decode(outbox.snapshot()[1])[1] == []


def test_a_snapshot_is_resumed_to_the_letter():
    outbox = Outbox(settings(), None)
    outbox.offer(noticed(opened("a"), opened("b"), now=time.time()))
    outbox.settle(noticed(opened("a"))[0])
    state = outbox.snapshot()
    again = Outbox(settings(), state)
    assert again.snapshot() == state
    again.offer(noticed(opened("a"), opened("b")))
    assert again.snapshot() == state
    with pytest.raises(ValueError, match="'v9'"):
        Outbox(settings(), ("v9", b""))


# --- secrets and settings -------------------------------------------------------------------------


def test_secrets_are_nowhere_to_be_seen(told, receiver, caplog):
    caplog.set_level(logging.DEBUG)
    key = f"whsec_{base64.b64encode(b'k' * 32).decode()}"
    given = settings(f"{receiver.url}/{SECRET}", headers={"X-Key": SECRET}, signing_secret=key)
    hub = HubSettings(connection_string=f"Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey={SECRET}", hub="f")
    receiver.script = [status(400, f"{SECRET} {key}".encode()), status(503, SECRET.encode()), hang_up]
    place = told(given)
    place.tell(opened("a"), opened("b"))
    place.done()
    seen = f"{given!r} {given.place} {given.webhook!r} {hub!r} {caplog.text}"
    assert "S3cr3t" not in seen and key not in seen and "set aside" in seen


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"name": "a b"}, "name is"),
        ({"webhook": None}, "needs one table"),
        ({"on": ()}, "on is empty"),
        ({"source": "a b"}, "source"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"longest_pause_seconds": 0.001}, "first_pause_seconds"),
        ({"most_waiting": 1}, "most_waiting"),
        ({"give_up_seconds": 0}, "give_up_seconds"),
        ({"url": f"ftp://{SECRET}"}, "url must be"),
        ({"url": f"https://u:{SECRET}@h/"}, "url must be"),
        ({"ca_file": "x"}, "ca_file is set"),
        ({"headers": {"Content-Type": "x"}}, "no name of a header"),
        ({"headers": {"X": f"{SECRET}\n"}}, "no header can carry"),
        ({"signing_secret": SECRET}, "signing_secret must"),
        ({"origin": "https://x"}, "origin is"),
    ],
)
def test_settings_that_cannot_be(given, why):
    with pytest.raises(ValueError, match=why) as error:
        settings(**given)
    assert "S3cr3t" not in str(error.value)


def test_a_missing_authority_is_said_at_the_start():
    with pytest.raises(ValueError, match="name a PEM file"):
        Place(settings("https://x.example/", ca_file="/nowhere.pem"), MqttSettings())
