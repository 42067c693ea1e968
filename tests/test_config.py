"""The configuration: what it takes, and one clear line with the place for what it does not."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voltmill.flows.config import Config, ConfigError, load, parse

SECRET = "hunter2-+/'\"\\"


def read(text: str | bytes, tmp_path: Path, **environ: str) -> Config:
    (tmp_path / "c.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(tmp_path / "c.toml", environ)


def refused(text: str | bytes, tmp_path: Path, **environ: str) -> str:
    """The one line that says why, without the folder."""
    with pytest.raises(ConfigError) as error:
        read(text, tmp_path, **environ)
    line = str(error.value)
    assert "\n" not in line and error.value.__cause__ is None
    return line.removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize("text", ["", "# nothing\n", "[run]\n[mqtt]\n[lake]\n[sql]\n", b"\xef\xbb\xbf[run]\r\n"])
def test_an_empty_file_runs(tmp_path: Path, text: str | bytes) -> None:
    assert read(text, tmp_path) == Config() == load(None)


EVERY_TABLE = """
model = [{ name = "lg_hg2_soc" }, { name = "other.onnx", mode = "shadow" }]
models = { folder = "models" }
[run]
shards = 7
[mqtt]
host = "broker"
topics = ["a/#", "b/#"]
[mqtt.tls]
ca_file = "ca.pem"
[iothub]
consumer_group = "soc"
[gateway]
[[notify]]
name = "duty"
webhook = { url = "https://hooks.example/x" }
[decode]
mapping = "car"
time_zone = "Europe/Berlin"
[mapping.car]
topic = "cars/#"
columns = { device_id = "id", event_time = "t", cell_voltage_volt = { path = "c", unit = "mV" } }
[quality]
late_seconds = 5
[sessions]
shortest_seconds = 60
[health]
restart_cycles = 400
[features]
windows_seconds = [60]
[archive]
payload = true
[[fleet]]
match = "a/*"
cell_type = "lg-hg2"
capacity_ah = 3
limits = { cell_voltage_volt = [2.5, 4.2] }
[[fleet]]
match = "*"
[lake]
url = "abfs://c/lake"
storage_options = { account_name = "n", account_key = "${KEY}" }
[redrive]
poll_seconds = 2
[sql]
timeout_seconds = 7
[simulate]
start_time = 2026-01-01T00:00:00+01:00
[simulate.faults]
drop_rate = 0.5
"""


def test_every_table_arrives(tmp_path: Path) -> None:
    c = read(EVERY_TABLE, tmp_path, KEY=SECRET)
    assert c.run.shards == 7 and c.mqtt.topics == ("a/#", "b/#") and c.mqtt.tls and c.mqtt.tls.ca_file == "ca.pem"
    assert c.decode.mapping == "car" and c.mapping["car"].topic == "cars/#"
    assert c.quality.late_seconds == 5 and c.features.windows_seconds == (60,) and c.archive.payload
    assert [m.mode for m in c.model] == ["live", "shadow"] and c.sql.timeout_seconds == 7
    assert c.redrive.poll_seconds == 2 and c.iothub.consumer_group == "soc" and [n.name for n in c.notify] == ["duty"]
    assert c.devices.facts("a/1").capacity_ah == 3 and c.devices.facts("b/1").cell_type == ""
    assert c.devices.facts("a/1").limits.cell_voltage_volt == (2.5, 4.2)
    assert c.lake.storage_options == {"account_name": "n", "account_key": SECRET}
    assert c.simulate.start_time == datetime.datetime(2025, 12, 31, 23, tzinfo=datetime.UTC)
    assert c.simulate.faults.drop_rate == 0.5
    assert set(Config.__struct_fields__) <= set(EVERY_TABLE.replace("[", " ").replace("]", " ").split())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[runn]", 'unknown key "runn" (did you mean "run"?)'),
        ("xyz = 1", 'unknown key "xyz"'),
        ("[run]\nshard = 1", '[run] unknown key "shard" (did you mean "shards"?)'),
        ("[mqtt]\nprot = 1", '[mqtt] unknown key "prot" (did you mean "port"?)'),
        ("[mqtt.tls]\nca_fil = 1", '[mqtt.tls] unknown key "ca_fil" (did you mean "ca_file"?)'),
        ("[decode]\nmaping = 1", '[decode] unknown key "maping" (did you mean "mapping"?)'),
        ("[quality]\nlate_second = 1", '[quality] unknown key "late_second" (did you mean "late_seconds"?)'),
        ("[features]\nwindow_seconds = 1", '[features] unknown key "window_seconds" (did you mean "windows_seconds"?)'),
        ("[archive]\npayloads = 1", '[archive] unknown key "payloads" (did you mean "payload"?)'),
        ("[lake]\nurll = 1", '[lake] unknown key "urll" (did you mean "url"?)'),
        ("[sql]\ndrivr = 1", '[sql] unknown key "drivr" (did you mean "driver"?)'),
        ("[simulate]\nsped = 1", '[simulate] unknown key "sped" (did you mean "speed"?)'),
        ("[simulate.faults]\ndrop = 1", '[simulate.faults] unknown key "drop" (did you mean "drop_rate"?)'),
        (
            "[[notify]]\nname = 'a'\nmqtt = {}\n[[notify]]\nname = 'a'\nmqtt = {}",
            '[notify] two tables bear the name "a": give each its own',
        ),
        (
            "[[notify]]\nname = 'a'",
            "[notify[0]] needs one table: [notify.webhook], [notify.notification_hubs] or [notify.mqtt]",
        ),
        (
            "[[notify]]\nname = 'a'\n[notify.webhook]\nur = 'x'",
            '[notify[0].webhook] unknown key "ur" (did you mean "url"?)',
        ),
        ("[[model]]\nname = 'x'\nmod = 'shadow'", '[model[0]] unknown key "mod" (did you mean "mode"?)'),
        (
            "[[fleet]]\nmatch = '*'\n[[fleet]]\nmatch = '*'\ncelltype = 'x'",
            '[fleet[1]] unknown key "celltype" (did you mean "cell_type"?)',
        ),
        (
            "[[fleet]]\nmatch = '*'\nlimits = { current_amper = [0, 1] }",
            '[fleet[0].limits] unknown key "current_amper" (did you mean "current_ampere"?)',
        ),
        (
            "[mapping.ok]\ncolumns = { device_id = 'd', event_time = 't', cell_voltage_volt = 'c' }\n"
            "[mapping.car]\ntopik = 'x'",
            '[mapping.car] unknown key "topik" (did you mean "topic"?)',
        ),
        (
            "[mapping.car.columns]\nvoltage_volts = 'u'",
            '[mapping.car]: columns.voltage_volts is no telemetry column (did you mean "voltage_volt"?)',
        ),
        (
            "[mapping.car.columns]\nvoltage_volt = { pth = 'u' }",
            '[mapping.car]: columns.voltage_volt: unknown key "pth" (did you mean "path"?)',
        ),
        ('[run]\n"a\\nb" = 1', '[run] unknown key "a\\nb"'),
    ],
)
def test_an_unknown_key_is_named_with_its_place(tmp_path: Path, text: str, line: str) -> None:
    assert refused(text, tmp_path) == f"c.toml: {line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[run]\nshards = '4'", "[run.shards] expected `int`, got `str`"),
        ("[run]\nshards = 4.5", "[run.shards] expected `int`, got `float`"),
        ("run = 3", "[run] expected `object`, got `int`"),
        ("[fleet]\nmatch = '*'", "[fleet] is a list of tables: write [[fleet]]"),
        ("[[fleet]]\ncell_type = 'x'", '[fleet[0]] the key "match" is missing'),
        ("[mapping.car]\ncolumns = 3", "[mapping.car.columns] expected `object`, got `int`"),
        ("[mapping]\ncar = 3", "[mapping.car] expected `object`, got `int`"),
        ("[run]\nshards = 0", "[run] shards and recovery_partitions must be 1 to 1000"),
        ("[run]\nepoch_seconds = nan", "[run.epoch_seconds] nan is no finite number"),
        ("[simulate]\nstart_soc = [inf, 1]", "[simulate.start_soc[0]] inf is no finite number"),
        ("[simulate]\ninterval_seconds = inf", "[simulate.interval_seconds] inf is no finite number"),
        ("[run]\nepoch_seconds = 1e300", "[run] epoch_seconds must be above 0, and 3600 at most"),
        ("[run]\nmetrics_port = 70000", "[run] metrics_port must be 1 to 65535, or 0 for none"),
        ("[run]\nstate = ''", "[run] state is empty: name a folder"),
        ("[run]\nlog_level = 'loud'", "[run.log_level] must be one of debug, info, warning, error"),
        ("[mqtt]\nprotocol = '4'", "[mqtt.protocol] must be one of 5, 3.1.1"),
        ("[decode]\nmapping = 'compat'", 'decode.mapping: there is no mapping "compat" (did you mean "compact"?)'),
        ("[simulate]\nstart_time = 2026-01-01", "[simulate.start_time] expected `datetime | null`, got `date`"),
        (
            "[simulate]\nstart_time = 2026-01-01T00:00:00",
            "[simulate] start_time: with a time zone, such as 2026-01-01T00:00:00Z",
        ),
        ("[mqtt]\nport = 0", "[mqtt] port 0 is no TCP port: 1 to 65535"),
        (b"\xff\xfe", "not UTF-8: byte 0"),
        ("[run", "not TOML: Expected ']' at the end of a table declaration (at end of document)"),
        ("a = " + "[" * 5000, "not TOML: maximum recursion depth exceeded"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert refused(text, tmp_path) == f"c.toml: {line}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "no.toml", "No such file or directory")):
        with pytest.raises(ConfigError) as error:
            load(path)
        assert str(error.value) == f"{path}: cannot be read: {why}"


class TestEnvironment:
    def test_stands_in_for_names_anywhere_in_a_text(self, tmp_path: Path) -> None:
        text = "[mqtt]\nusername = 'u'\npassword = '${A}${B}'\ntopics = ['x/${A}']\n[lake]\nurl = '${A}/lake'"
        c = read(text, tmp_path, A="one", B="${A}")
        assert c.mqtt.password == "one${A}"  # what comes from the environment is not read again
        assert c.mqtt.topics == ("x/one",) and c.lake.url == "one/lake"

    def test_a_missing_variable_is_named_with_its_place(self, tmp_path: Path) -> None:
        assert refused("[mqtt]\npassword = '${PW}'", tmp_path) == (
            "c.toml: [mqtt.password] the environment variable PW is not set"
        )
        assert refused("[mqtt]\ntopics = ['a', '${A-B}']", tmp_path).endswith(
            "[mqtt.topics[1]] the environment variable A-B is not set"
        )
        assert "[lake.storage_options.key] the environment variable K is not set" in refused(
            "[lake]\nstorage_options = { key = '${K}' }", tmp_path
        )
        assert refused("[mqtt]\nusername = '${U}'\npassword = '${PW}'", tmp_path) == (  # all of them at once
            "c.toml: [mqtt.username] the environment variable U is not set; "
            "[mqtt.password] the environment variable PW is not set"
        )

    def test_the_process_environment_is_the_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VOLTMILL_TEST_LAKE", "here")
        (tmp_path / "c.toml").write_text("[lake]\nurl = '${VOLTMILL_TEST_LAKE}'")
        assert load(tmp_path / "c.toml").lake.url == "here"

    @pytest.mark.parametrize(
        "text",
        [
            "[mqtt]\nusername = 'u'\npassword = '${PW}'\nport = 'x'",
            "[mqtt]\npassword = '${PW}'",
            "[mqtt]\nprotocol = '${PW}'",
            "[mqtt]\nclient_id = '${PW}'",
            "[mqtt]\nport = '${PW}'",
            "[run]\nlog_level = '${PW}'",
            "[sql]\nurl = 'mssql://u:${PW}@host'",
            "[sql]\ntimeout_seconds = '${PW}'",
            "[decode]\nmapping = '${PW}'",
            "[decode]\ntime_zone = '${PW}'",
            "[lake]\nstorage_options = ['${PW}']",
            "[lake]\nstorage_options = { key = '${PW}' }\nurl = 3",
            "[mapping.car.columns]\nvoltage_volt = { path = 'x', unit = '${PW}' }",
        ],
    )
    def test_a_secret_is_in_no_error(self, tmp_path: Path, text: str) -> None:
        line = refused(text, tmp_path, PW=SECRET)
        assert "hunter2" not in line and "c.toml: " in line

    def test_a_secret_is_in_no_repr(self, tmp_path: Path) -> None:
        text = "[mqtt]\nusername = 'u'\npassword = '${PW}'\n[lake]\nstorage_options = { key = '${PW}' }"
        c = read(text, tmp_path, PW=SECRET)
        assert c.mqtt.password == SECRET == c.lake.storage_options["key"]
        assert "hunter2" not in f"{c!r}{c}{c.mqtt}{c.lake!r}"


WORDS = st.sampled_from(
    [*Config.__struct_fields__, "tls", "faults", "limits", "columns", "match", "name", "port", "url", "path"]
    + ["shards", "topics", "storage_options", "voltage_volt", "car", "device_id", "start_time", "windows_seconds"]
)
LEAVES = st.one_of(
    st.none().map(lambda _: "*"),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["${A}", "${B}", "lg-hg2", "compact", "a/#"]),
    st.datetimes(),
    st.dates(),
    st.times(),
)
TABLES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(WORDS, TABLES, max_size=4))
@example({"mapping": {"a": {"columns": {"device_id": ["x", "y"]}, "rows": "a[", "envelope": "]"}}})
@example({"mapping": {"a": {"columns": {"current_ampere": {"path": "i", "scale": 1e308, "offset": 1e308}}}}})
@example({"run": {"shards": 10**400}})
def test_nothing_else_is_ever_raised(data: dict[str, Any]) -> None:
    try:
        config = parse(data, "c.toml", {"A": "secret-value"})
    except ConfigError as error:
        assert str(error).startswith("c.toml: ") and "\n" not in str(error) and "secret-value" not in str(error)
    else:
        assert isinstance(config, Config)


def test_a_key_that_holds_a_newline_is_still_one_line():
    with pytest.raises(ConfigError) as error:
        parse({"mapping": {"\n": "*"}}, "c.toml", {})
    assert str(error.value) == r"c.toml: [mapping.\n] expected `object`, got `str`"
