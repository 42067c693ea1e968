"""Where a server is and who we are there, from a URL or from a connection string as the Azure portal shows it.

A password is taken as it stands, so that one from the environment needs no escapes. No error repeats any of the text.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

POSTGRESQL: Final = "postgresql://"
MSSQL: Final = "mssql://"
_PORTS: Final = {POSTGRESQL: 5432, MSSQL: 1433}
_PLACE: Final = re.compile(
    r"(?P<host>\[[^\]]+\]|[^:/?\[\]]+)(:(?P<port>\d{1,5}))?/(?P<database>[^/?]+)(\?(?P<options>(\w+=[^&]*(&|$))+))?"
)

#: Other words for a keyword, of ODBC and of ADO.NET, which the portal shows beside each other.
_SAME: Final = {
    "address": "server",
    "addr": "server",
    "data source": "server",
    "initial catalog": "database",
    "user": "uid",
    "user id": "uid",
    "password": "pwd",
}
#: What concerns the client library alone that the string was made for.
_OTHERS_OWN: Final = {
    "driver",
    "connection timeout",
    "connect timeout",
    "persist security info",
    "multipleactiveresultsets",
    "pooling",
}
#: Words for yes and no that ADO.NET has and the driver does not take.
_BOOLEAN: Final = {"true": "yes", "false": "no"}
_PAIR: Final = re.compile(
    r"""\s*(?P<key>[^=;]+?)\s*=\s*(\{(?P<braced>([^}]|\}\})*)\}|"(?P<quoted>([^"]|"")*)"|(?P<plain>[^;]*?))\s*(;|$)"""
)
_BEGINS: Final = re.compile(r"\s*(driver|server|data source|addr|address)\s*=", re.I)
_SERVER: Final = re.compile(r"(tcp:)?(?P<host>[^,\\]+)(,\s*(?P<port>\d{1,5}))?", re.I)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is and who we are there.

    Attributes:
        scheme: ``postgresql://`` or ``mssql://``.
        host: its name or address.
        port: its TCP port.
        database: name of the database.
        user: empty: the name the process runs under.
        password: never shown; empty: none is sent.
        options: further options of the client library.
    """

    scheme: str
    host: str
    port: int
    database: str
    user: str = ""
    password: str = ""
    options: dict[str, str] = {}

    def __repr__(self) -> str:
        """Without the password."""
        return f"Server({self.place})"

    @property
    def place(self) -> str:
        """As messages name it."""
        return f"{self.scheme}{self.host}:{self.port}/{self.database}"


def server(url: str, scheme: str) -> Server:
    """Take a URL apart.

    Raises:
        ValueError: it is none of the form.
    """
    login, _, rest = url.removeprefix(scheme).rpartition("@")
    user, _, password = login.partition(":")
    found = _PLACE.fullmatch(rest)
    if not found or not 0 < int(found["port"] or _PORTS[scheme]) < 65_536:
        raise ValueError(f"url must be {scheme}USER:PASSWORD@HOST:PORT/DATABASE")
    return Server(
        scheme=scheme,
        host=found["host"].strip("[]"),
        port=int(found["port"] or _PORTS[scheme]),
        database=found["database"],
        user=user,
        password=password,
        options=dict(pair.split("=", 1) for pair in (found["options"] or "").split("&") if pair),
    )


def is_connection_string(url: str) -> bool:
    """Whether it is one, of SQL Server.

    Example:
        >>> is_connection_string("Driver={ODBC Driver 18 for SQL Server};Server=tcp:h,1433;Database=d;Uid=u;Pwd=p;")
        True
    """
    return _BEGINS.match(url) is not None


def connection_string(text: str) -> Server:
    """Take a connection string of SQL Server apart, of ODBC or of ADO.NET; what only concerns those is left out.

    Raises:
        ValueError: it cannot be read, or names no host and database.

    Example:
        >>> found = connection_string('Server=tcp:h,1433;Initial Catalog=d;User ID=u;Password={p;w};Encrypt=True;')
        >>> found.place, found.user, found.password, found.options
        ('mssql://h:1433/d', 'u', 'p;w', {'encrypt': 'yes'})
    """
    parts = {key: value for key, value in _pairs(text) if key not in _OTHERS_OWN}
    found = _SERVER.fullmatch(parts.pop("server", ""))
    database = parts.pop("database", "")
    port = int(found["port"] or _PORTS[MSSQL]) if found else 0
    if not found or not database or not 0 < port < 65_536:
        raise ValueError("url must be a connection string with Server=HOST,PORT and Database=NAME")
    user, password = parts.pop("uid", ""), parts.pop("pwd", "")
    options = {key.replace(" ", ""): _BOOLEAN.get(value.lower(), value) for key, value in parts.items()}
    if not all(re.fullmatch(r"\w+", key) for key in options):
        raise ValueError("url must be a connection string of keywords and values")
    return Server(
        scheme=MSSQL, host=found["host"], port=port, database=database, user=user, password=password, options=options
    )


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while text[at:].strip(" ;\n"):
        found = _PAIR.match(text, at)
        if not found:
            raise ValueError(
                "url must be a connection string: KEYWORD=VALUE;KEYWORD=VALUE, braces around a value with ;"
            )
        braced, quoted = found["braced"], found["quoted"]
        value = found["plain"] if braced is None else braced.replace("}}", "}")
        key = found["key"].lower()
        yield _SAME.get(key, key), value if quoted is None else quoted.replace('""', '"')
        at = found.end()
