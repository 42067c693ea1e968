"""The places themselves: Notification Hubs with its SAS tokens, MQTT on a real broker, probes, the test alert."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, quote

import paho.mqtt.client as paho
import pytest
from alert_receiver import Handler, Receiver, hang, status
from alert_rows import noticed, opened

from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.connectors.notify import Place
from voltmill.connectors.notify_errors import NotifyError
from voltmill.connectors.notify_http import Hub
from voltmill.connectors.notify_places import HubSettings, NotifyMqttSettings, WebhookSettings
from voltmill.connectors.notify_probe import probe
from voltmill.connectors.notify_settings import NotifySettings
from voltmill.flows.broker import free_port
from voltmill.flows.cli import main

POLICY, KEY = "Send", "c2VjcmV0L2tleQ+with=="
NOTICE = noticed(opened("a"))[0]


def hub_stand_in(handler: Handler) -> None:
    """A hub named fleet: checks path, format and SAS token as the real one is documented to, and answers 201."""
    method, path, headers, body = handler.server.requests[-1]
    if not path.startswith("/fleet/messages/?api-version=20"):
        return handler.send(404, b"<Error><Code>404</Code><Detail>No such hub</Detail></Error>")
    scheme, _, text = headers["Authorization"].partition(" ")
    token = {name: values[0] for name, values in parse_qs(text, strict_parsing=True).items()}
    signed = f"{quote(token['sr'], safe='')}\n{token['se']}".encode()
    wanted = base64.b64encode(hmac.new(KEY.encode(), signed, hashlib.sha256).digest()).decode()
    right = scheme == "SharedAccessSignature" and token["skn"] == POLICY and hmac.compare_digest(token["sig"], wanted)
    if not right or int(token["se"]) < time.time() or token["sr"] != f"https://{handler.server.place}/fleet":
        return handler.send(401, b"<Error><Code>401</Code><Detail>InvalidSignature</Detail></Error>")
    facts = json.loads(body)
    strings = headers["ServiceBusNotification-Format"] == "template" and all(isinstance(v, str) for v in facts.values())
    return handler.send(201 if strings else 400)


@pytest.fixture
def hub(certificates) -> Iterator[Receiver]:
    started = Receiver(certificates)
    started.usual = hub_stand_in
    yield started
    started.stop()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.stop()


def hub_settings(hub: Receiver, certificates, *, key: str = KEY, name: str = "fleet", **given) -> HubSettings:
    text = f"Endpoint=sb://{hub.place}/;SharedAccessKeyName={POLICY};SharedAccessKey={key}"
    return HubSettings(connection_string=text, hub=name, ca_file=certificates.ca_file, **given)


def test_a_hub_takes_a_template_under_a_token_of_its_key(hub, certificates):
    channel = Hub(hub_settings(hub, certificates, tags="duty && !night"), 10.0)
    channel.send(NOTICE)
    channel.close()
    ((_, _, headers, body),) = hub.requests
    assert headers["ServiceBusNotification-Tags"] == "duty && !night"
    assert headers["Content-Type"] == "application/json;charset=utf-8"
    assert json.loads(body)["message"] == NOTICE.text and hub.ids() == ["a-opened-alarm"]


def test_a_wrong_key_is_refused_for_good_and_many_for_a_while(hub, certificates):
    channel = Hub(hub_settings(hub, certificates, key="V3Jvbmc="), 10.0)
    with pytest.raises(NotifyError, match="InvalidSignature.*of this very hub") as wrong:
        channel.send(NOTICE)
    assert not wrong.value.passes and wrong.value.away and "V3Jvbmc" not in str(wrong.value)
    hub.script = [status(403, b"quota", Retry_After="7")]  # as older versions of the API say 429
    with pytest.raises(NotifyError) as many:
        channel.send(NOTICE)
    assert many.value.passes and many.value.retry_after == 7
    channel.close()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"connection_string": "x"}, "has no Endpoint="),
        ({"connection_string": "Endpoint=sb://h/;SharedAccessKeyName=n"}, "has no SharedAccessKey="),
        ({"connection_string": "Endpoint=h;SharedAccessKeyName=n;SharedAccessKey=S3cr3t"}, "Endpoint must be"),
        ({"hub": "a b"}, "hub is"),
        ({"tags": "a\nb"}, "tags is"),
        ({"api_version": "latest"}, "api_version is"),
    ],
)
def test_hub_settings_that_cannot_be(given, why):
    usual = {"connection_string": "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=S3cr3t", "hub": "fleet"}
    with pytest.raises(ValueError, match=why) as error:
        HubSettings(**(usual | given))
    assert "S3cr3t" not in str(error.value)


# --- MQTT -----------------------------------------------------------------------------------------


class Listener:
    """Subscribes to everything on a broker."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.changed = threading.Condition()
        self._client = paho.Client("listener", clean_session=False)  # the broker keeps what it misses
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = self._on_message
        ready = threading.Event()
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("#", qos=1)
        assert ready.wait(10)

    def _on_message(self, client, userdata, message) -> None:
        with self.changed:
            self.got.append((message.topic, message.payload))
            self.changed.notify_all()

    def wait(self, count: int) -> list[tuple[str, bytes]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.got) >= count, 30), self.got
        return self.got

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def topic(**given) -> NotifySettings:
    usual = {"name": "plant", "first_pause_seconds": 0.02, "longest_pause_seconds": 0.1, "timeout_seconds": 1.0}
    return NotifySettings(**usual, mqtt=NotifyMqttSettings(**given))


def test_a_topic_gets_each_alert_once_though_the_broker_was_away(mosquitto):
    broker = mosquitto(persistence=True)
    outcomes: list[str] = []
    place = Place(
        topic(topic="plant/{severity}/{device_id}"),
        MqttSettings(port=broker.port, reconnect_min_seconds=0.05),
        on_attempt=lambda outcome, seconds: outcomes.append(outcome),
    )
    listener = Listener(broker.port)
    outbox = place.outbox(None)
    sender = place.sender(outbox)
    try:
        outbox.offer(noticed(opened("a", "site/+/m#1"), now=time.time()))
        ((where, payload),) = listener.wait(1)
        assert where == "plant/alarm/site/_/m_1" and json.loads(payload)["id"] == "a-opened-alarm"
        broker.stop()
        outbox.offer(noticed(opened("b"), now=time.time()))
        deadline = time.monotonic() + 30
        while outcomes.count("timeout") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        broker.start()
        assert outbox.wait_empty(30) and outcomes.count("timeout") >= 2
        outbox.offer(noticed(opened("c"), now=time.time()))
        told = [json.loads(text)["id"] for _, text in listener.wait(3)]
        assert told == ["a-opened-alarm", "b-opened-alarm", "c-opened-alarm"]
    finally:
        sender.close(10.0)
        listener.stop()


@pytest.mark.parametrize("text", ["", "a/+/b", "a/#", "a/{device}", "a/{}"])
def test_topics_that_cannot_be(text):
    with pytest.raises(ValueError, match="topic is a topic"):
        NotifyMqttSettings(topic=text)


# --- probes, and the test alert -------------------------------------------------------------------


def webhook(url: str, **given) -> NotifySettings:
    return NotifySettings(name="duty", timeout_seconds=2.0, webhook=WebhookSettings(url=url, **given))


def test_a_probe_of_a_webhook_sends_no_event(hook):
    hook.usual = status(200, WebHook_Allowed_Origin="*")
    found = probe(webhook(hook.url, headers={"X-Key": "S3cr3t"}, origin="plant.example"), MqttSettings())
    assert found.works and str(found) == f"notify duty ({hook.place}): works, answers 200 to OPTIONS"
    ((method, _, headers, _),) = hook.requests
    assert method == "OPTIONS" and headers["X-Key"] == "S3cr3t" and hook.ids() == []
    hook.usual = status(405)
    found = probe(webhook(hook.url, origin="plant.example"), MqttSettings())
    assert found.works and "does not say that it allows plant.example" in found.facts


@pytest.mark.parametrize(
    ("code", "mend"),
    [(302, "final address"), (401, "set headers"), (403, "set headers"), (404, "check url"), (410, "wants no more")],
)
def test_a_probe_says_what_a_webhook_has_against_us(hook, code, mend):
    hook.usual = status(code, b"S3cr3t is wrong")
    found = probe(webhook(hook.url, headers={"X-Key": "S3cr3t"}), MqttSettings())
    assert not found.works and found.problem == f"answers {code} (*** is wrong)" and mend in found.mend


def test_a_probe_says_what_is_wrong_with_the_way(hook, hub, certificates):
    closed = probe(webhook(f"http://127.0.0.1:{free_port()}/"), MqttSettings())
    assert "connection is refused" in closed.problem and "firewall" in closed.mend
    assert "not trusted" in probe(webhook(hub.url), MqttSettings()).problem
    missing = probe(webhook(hub.url, ca_file="/nowhere.pem"), MqttSettings())
    assert "ca_file '/nowhere.pem' cannot be used" in missing.problem
    hook.usual = hang
    silent = NotifySettings(name="duty", timeout_seconds=0.2, webhook=WebhookSettings(url=hook.url))
    assert probe(silent, MqttSettings()).problem == "no answer within 0.2 s"


def test_a_probe_of_a_hub_reaches_nobody(hub, certificates):
    def found(**given):
        return probe(
            NotifySettings(name="p", notification_hubs=hub_settings(hub, certificates, **given)), MqttSettings()
        )

    assert str(found()) == f"notify p ({hub.place}/fleet): works, takes notifications"
    assert hub.requests[0][2]["ServiceBusNotification-Tags"] == "voltmill:check:nobody"
    wrong = found(key="V3Jvbmc=")
    assert "answers 401" in wrong.problem and "access policy of this very hub" in wrong.mend
    assert "there is no such hub" in found(name="other").mend


def test_a_probe_of_a_topic_logs_in(mosquitto):
    broker = mosquitto(users={"flow": "right"})
    good = probe(topic(), MqttSettings(port=broker.port, username="flow", password="right"))
    assert good.works and good.facts == "lets us in" and good.place == "notify plant (the broker of [mqtt])"
    wrong = MqttSettings(port=broker.port, username="flow", password="wr0ng!")
    found = probe(topic(broker=wrong), MqttSettings())
    assert "the login is refused" in found.problem and "wr0ng!" not in str(found)
    assert "connection is refused" in probe(topic(), MqttSettings(port=free_port())).problem


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch) -> Run:
    def call(text: str, *names: str) -> tuple[int, str, str]:
        (tmp_path / "c.toml").write_text(text)
        monkeypatch.setenv("KEY", "S3cr3t")
        code = 0
        try:
            main(["notify", "test", "-c", str(tmp_path / "c.toml"), *names])
        except SystemExit as leave:
            code = int(leave.code or 0)
        return code, *capsys.readouterr()

    return call


def test_a_test_alert_by_hand(run, hook):
    place = '[[notify]]\nname = "{name}"\ncodes = ["NONE"]\n[notify.webhook]\nurl = "{url}"\n'
    place += 'headers = {{ K = "${{KEY}}" }}\n'
    good = place.format(name="duty", url=hook.url)
    code, out, err = run(good)
    assert code == 0 and not err
    (event,) = hook.taken
    assert event["id"] in out and event["data"]["code"] == "TEST_ALERT" and event["subject"] == "voltmill/test"
    hook.script = [status(401, b"S3cr3t?")]
    code, out, err = run(good)
    assert code == 1 and "answers 401 (***?): set headers to what the receiver asks for" in err
    both = good + place.format(name="other", url=f"http://127.0.0.1:{free_port()}/")
    assert run(both, "duty")[0] == 0 and run(both)[0] == 1
    assert "no [[notify]] table named 'x'" in run(both, "x")[2] and "no [[notify]] table" in run("")[2]
    assert run(both, "x")[0] == 2


def test_a_test_alert_to_a_topic(run, mosquitto):
    broker = mosquitto()
    listener = Listener(broker.port)
    code, out, _ = run(f'[mqtt]\nport = {broker.port}\n[[notify]]\nname = "plant"\n[notify.mqtt]\n')
    ((where, payload),) = listener.wait(1)
    listener.stop()
    assert code == 0 and where == "voltmill/alerts/voltmill/test" and json.loads(payload)["id"] in out
