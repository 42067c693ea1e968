"""docs/azure.md and its example: the file is good, the reckoning of what messages cost is that of the code."""

import math
import re
from itertools import islice
from pathlib import Path

import pytest

from voltmill.connectors.gateway_settings import MOST_MESSAGE_BYTES
from voltmill.connectors.pack import entry, pack
from voltmill.flows import cli
from voltmill.flows.config import load
from voltmill.flows.simulate_settings import SimulateSettings
from voltmill.flows.simulated_messages import messages

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs/examples/azure.toml"
POLICY = "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=x;SharedAccessKey=eA=="
SECRETS = {
    "IOTHUB_EVENTS": f"{POLICY};EntityPath=x",
    "NOTIFICATION_HUB": POLICY,
    "ALERT_WEBHOOK": "https://hooks.example/x",
}
BLOCK, DAY, S1 = 4096, 86_400, 400_000


def test_the_example_is_good(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "--offline", str(EXAMPLE)])
    assert not ended.value.code
    assert capsys.readouterr() == (f"{EXAMPLE}: good\n", "")
    config = load(EXAMPLE)
    assert config.run.source == "iothub" and config.sql.emit_every_seconds == {"soc": 60}
    assert {place.name for place in config.notify} == {"operations", "phones"}


def test_the_page_names_every_secret_of_the_example() -> None:
    assert set(re.findall(r"\$\{(\w+)\}", EXAMPLE.read_text())) == set(SECRETS)


def test_what_messages_cost() -> None:
    """1,000 modules, a message every 5 s each; a table row is: way, hub messages a second, blocks a day, S1 units."""
    text = (ROOT / "docs/azure.md").read_text()
    settings = SimulateSettings(gateways=1, packs_per_gateway=10, modules_per_pack=100, cells=16)
    sent = list(islice(messages(settings), 1000))
    plain = round(sum(len(payload) for _, payload in sent) / 1000)
    packed = round(sum(len(entry(*message)) + 1 for message in sent) / 1000)
    assert f"16 cells has {plain} bytes here" in text and f"it takes {packed} bytes" in text

    def row(way: str, gateways: int, seconds: float) -> str:
        count = round(200 * seconds / gateways)  # messages in a pack
        size = len(pack([entry(*message) for message in sent[:count]]))
        assert size <= MOST_MESSAGE_BYTES
        a_second = gateways / seconds
        blocks = round(a_second * math.ceil(size / BLOCK) * DAY)
        return rf"\| {way} +\| {a_second:g} +\| {blocks:,} +\| {math.ceil(blocks / S1)} \|"

    assert re.search(r"\| each message by itself +\| 200 +\| 17,280,000 +\| 44 \(or 3 of S2\) \|", text)
    assert (200 * DAY, math.ceil(200 * DAY / S1), math.ceil(200 * DAY / 6e6)) == (17_280_000, 44, 3)
    assert re.search(row("one gateway, packs of 1 s", 1, 1), text)
    assert re.search(row("ten gateways, packs of 1 s", 10, 1), text)
    assert re.search(row("ten gateways, packs of 10 s", 10, 10), text)
