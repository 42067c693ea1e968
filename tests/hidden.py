"""Secrets for tests that look for them: one for each place in the configuration, and every form it could show up in."""

import base64
import re
from typing import Final
from urllib.parse import quote, quote_plus

#: A secret by the name of the environment variable that holds it. Each has characters that URLs quote, and those
#: that services want in base64 are.
WORDS: Final = {
    "MQTT_WORD": "mqtt/w0rd+with=signs",
    "HUB_KEY": base64.b64encode(b"iothub key \xff\xfe: a secret").decode(),
    "GATEWAY_KEY": base64.b64encode(b"gateway key \xff\xfe: a secret").decode(),
    "LAKE_KEY": base64.b64encode(b"account key \xff\xfe: a secret").decode(),
    "LAKE_SAS": "sv=2024-11-04&ss=b&sig=" + quote(base64.b64encode(b"a sas signature: a secret"), safe=""),
    "SQL_WORD": "sql:w0rd/w@th+signs",
    "SQL_STRING_WORD": "portal;w0rd}with{signs",
    "ENDPOINT_KEY": "endpoint/k3y+with=signs",
    "HOOK_PATH": "T0hook/B0path/k3y-in-the-path",
    "HOOK_QUERY": "hook-query-t0ken",
    "HOOK_TOKEN": "hook-header-t0ken",
    "HOOK_SIGNING": base64.b64encode(b"signing secret: \xff\xfe 24 bytes").decode(),
    "PUSH_KEY": base64.b64encode(b"push key \xff\xfe: a secret").decode(),
    "PUSH_WORD": "notify-mqtt/w0rd+x",
}

#: A signature made from a key opens what the key opens, for a while.
SIGNED: Final = re.compile(r"sig=(?!\*)[A-Za-z0-9%+/=_-]{16,}")


def forms(word: str) -> set[str]:
    """What a secret may look like in a text: as it is, quoted for a URL, in base64 wherever in it, taken out of it."""
    data = word.encode()
    found = {word, quote(word), quote(word, safe=""), quote_plus(word), repr(word)[1:-1]}
    for before in (b"", b"x", b"xx"):  # base64 of three bytes is four characters, so there are three ways to cut
        whole = base64.b64encode(before + data).decode()
        found.add(whole[4 if before else 0 : (len(before + data) // 3) * 4])
    try:
        found.add(base64.b64decode(word, validate=True).decode("latin-1"))
    except ValueError:
        pass
    if "sig=" in word:  # of a SAS, the rest opens nothing
        found |= forms(word.partition("sig=")[2])
    return {form for form in found if len(form) >= 8}


def shown(text: str, *, words: dict[str, str] = WORDS) -> list[str]:
    """The names of the secrets that a text shows."""
    names = [name for name, word in words.items() if any(form in text for form in forms(word))]
    return [*names, *(f"a signature: {found}" for found in SIGNED.findall(text))]
