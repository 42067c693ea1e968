"""Settings never show what is secret in them: every struct of the configuration, and the errors about wrong values."""

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hidden import WORDS, forms, shown

from voltmill.flows.config import Config, ConfigError, load

#: A secret in each place where one can stand; of those that exclude each other, the rest is in OTHERS.
EVERYWHERE = """
[mqtt]
username = "flow"
password = "{MQTT_WORD}"
[iothub]
connection_string = "Endpoint=sb://h.example/;SharedAccessKeyName=service;SharedAccessKey={HUB_KEY};EntityPath=bms"
[gateway]
connection_string = "HostName=h.example;DeviceId=gw-1;SharedAccessKey={GATEWAY_KEY}"
[lake]
url = "abfs://fleet/lake?{LAKE_SAS}"
[lake.storage_options]
connection_string = "AccountName=x;AccountKey={LAKE_KEY}"
sas_token = "{LAKE_SAS}"
[sql]
url = "postgresql://mill:{SQL_WORD}@db.example/fleet"
[[model]]
name = "soc"
[model.endpoint]
url = "https://m.example/score"
contract = "soc.json"
key = "{ENDPOINT_KEY}"
[[notify]]
name = "hook"
[notify.webhook]
url = "https://hooks.example/{HOOK_PATH}?token={HOOK_QUERY}"
headers = {{ Authorization = "Bearer {HOOK_TOKEN}" }}
signing_secret = "whsec_{HOOK_SIGNING}"
[[notify]]
name = "phones"
[notify.notification_hubs]
connection_string = "Endpoint=sb://n.example/;SharedAccessKeyName=Send;SharedAccessKey={PUSH_KEY}"
hub = "fleet"
[[notify]]
name = "topic"
[notify.mqtt.broker]
username = "flow"
password = "{PUSH_WORD}"
"""
OTHERS = [
    '[sql]\nurl = "mssql://mill:{SQL_WORD}@db.example/fleet"',
    """[sql]\nurl = 'Server=tcp:db.example,1433;Database=fleet;Uid=mill;Pwd={SQL_WORD};Encrypt=yes'""",
    """[sql]\nurl = 'Driver=x;Server=tcp:db.example;Database=fleet;Uid=mill;Pwd={{portal;w0rd}}}}with{{signs}};'""",
    '[lake]\nurl = "ftp://mill:{SQL_WORD}@files.example/lake"',
    '[lake]\nurl = "abfs://c/l"\nstorage_options = {{ client_secret = "{LAKE_KEY}", account_key = "{LAKE_KEY}" }}',
]

#: Names of settings that sound secret, or have room for a secret, and hold none.
OPEN = {
    *("mqtt.tls.key_file", "notify.mqtt.broker.tls.key_file"),
    "model.endpoint.url",  # takes neither user nor query
    *("gateway.sas_ttl_seconds", "model.endpoint.credential"),
}
SOUNDS_SECRET = re.compile(r"password|secret|token|key|connection_string|credential|sas|url|headers|options")


def structs(value: Any, place: str = "") -> Iterator[tuple[str, msgspec.Struct]]:
    """Each settings struct in a configuration, with its place."""
    if isinstance(value, msgspec.Struct):
        yield place, value
        for name in value.__struct_fields__:
            yield from structs(getattr(value, name), f"{place}.{name}".lstrip("."))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from structs(each, place)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from structs(each, f"{place}.{key}")


def fields(type_: Any, place: str = "") -> Iterator[str]:
    """The place of each setting that there is."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        for name, hint in typing.get_type_hints(type_).items():
            yield f"{place}.{name}".lstrip(".")
            yield from fields(hint, f"{place}.{name}".lstrip("."))
    for argument in typing.get_args(type_):
        yield from fields(argument, place)


def read(folder: Path, text: str, **environ: str) -> Config:
    file = folder / "c.toml"
    file.write_text(text)
    return load(file, environ)


@pytest.mark.parametrize("template", [EVERYWHERE, *OTHERS])
def test_no_struct_shows_a_secret(tmp_path: Path, template: str) -> None:
    config = read(tmp_path, template.format(**WORDS))
    seen = 0
    for place, struct in structs(config):
        for text in (repr(struct), str(struct), f"{struct!r:>10}"):
            assert shown(text) == [], place
        seen += 1
    assert seen > 15
    named = [config.lake, config.sql, config.iothub, *config.notify]
    assert shown(" ".join(each.place for each in named)) == []


def test_every_setting_that_sounds_secret_is_tried(tmp_path: Path) -> None:
    """A new one must be given a secret above, or be named among those that hold none."""
    texts = [EVERYWHERE, *OTHERS]
    tried = set()
    for text in texts:
        for place, struct in structs(read(tmp_path, text.format(**WORDS))):
            for name in struct.__struct_fields__:
                value = getattr(struct, name)
                if isinstance(value, str | dict) and shown(str(value)):
                    tried.add(f"{place}.{name}")
    sounding = {place for place in fields(Config) if SOUNDS_SECRET.search(place.rpartition(".")[2])}
    assert "mqtt.password" in tried and "lake.storage_options" in tried and len(sounding) > 12
    assert sounding - OPEN - tried == set()


WRONG = [
    '[iothub]\nconnection_string = "{HUB_KEY}"',
    '[iothub]\nconnection_string = "HostName=h;SharedAccessKeyName=a;SharedAccessKey={HUB_KEY}"',
    '[iothub]\nconnection_string = ["{HUB_KEY}"]',
    '[iothub]\nnamespace = "SharedAccessKey={HUB_KEY}"\nhub = "x"',
    '[gateway]\nconnection_string = "HostName=h;DeviceId=d;SharedAccessKey={HUB_KEY};X509=true"',
    '[gateway]\nconnection_string = "HostName=h;DeviceId=d;SharedAccessKey=*{GATEWAY_KEY}"',
    '[gateway]\nconnection_string = "HostName={GATEWAY_KEY};DeviceId=d;SharedAccessKey=x"',
    '[lake]\nurl = "abfs://c/l"\nstorage_options = {{ credential = "{LAKE_KEY}" }}',
    '[lake]\nstorage_options = "{LAKE_KEY}"',
    '[sql]\nurl = "mysql://mill:{SQL_WORD}@db.example/fleet"',
    '[sql]\nurl = "postgresql://mill:{SQL_WORD}@/fleet"',
    '[sql]\nurl = "mssql://mill:{SQL_WORD}@"',
    '[sql]\nurl = "Server=db.example;Pwd={SQL_WORD};Uid"',
    '[sql]\nurl = "{SQL_WORD}"',
    '[mqtt]\npassword = "{MQTT_WORD}"',
    '[mqtt]\nusername = "x"\npassword = {{ a = "{MQTT_WORD}" }}',
    '[mqtt]\nhost = "mill:{MQTT_WORD}@broker"\nport = 0',
    '[[model]]\nname = "m"\nendpoint = {{ url = "https://x:{ENDPOINT_KEY}@h/score", contract = "c" }}',
    '[[model]]\nname = "m"\nendpoint = {{ url = "https://h/score", contract = "c", key = "{ENDPOINT_KEY} x" }}',
    '[[notify]]\nname = "n"\nwebhook = {{ url = "https://x:{HOOK_QUERY}@h/" }}',
    '[[notify]]\nname = "n"\nwebhook = {{ url = "https://h/", signing_secret = "whsec_*{HOOK_SIGNING}" }}',
    """[[notify]]\nname = "n"\nwebhook = {{ url = "https://h/", headers = {{ A = "{HOOK_TOKEN}\\n" }} }}""",
    '[[notify]]\nname = "n"\nnotification_hubs = {{ connection_string = "{PUSH_KEY}", hub = "h" }}',
]


@pytest.mark.parametrize("template", WRONG)
def test_no_error_about_a_wrong_value_shows_it(tmp_path: Path, template: str) -> None:
    """Whether it stands in the file or comes from the environment; nor its causes, which --debug shows."""
    for text in (template.format(**WORDS), template.format(**{name: f"${{{name}}}" for name in WORDS})):
        with pytest.raises(ConfigError) as refused:
            read(tmp_path, text, **WORDS)
        error: BaseException | None = refused.value
        while error is not None:
            assert shown(str(error)) == [] and str(error).count("\n") == 0
            error = error.__cause__ if error.__suppress_context__ else error.__context__


def test_the_search_finds_what_it_looks_for() -> None:
    word = WORDS["MQTT_WORD"]
    assert all(shown(f"say {form} again") == ["MQTT_WORD"] for form in forms(word))
    assert shown("Basic bWlsbDptcXR0L3cwcmQrd2l0aD1zaWducw==") == ["MQTT_WORD"]
    assert shown("?sv=2024&sig=abcdefghijklmnop%3D") and not shown("?sv=2024&sig=***")
