"""What can be set about the database: the ``[sql]`` table."""

import re
from pathlib import Path
from typing import Final

import msgspec

SQLITE: Final = "sqlite:///"
POSTGRESQL: Final = "postgresql://"
_PORT: Final = 5432
_PLACE: Final = re.compile(
    r"(?P<host>\[[^\]]+\]|[^:/?\[\]]+)(:(?P<port>\d{1,5}))?/(?P<database>[^/?]+)(\?(?P<options>(\w+=[^&]*(&|$))+))?"
)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is and who we are there.

    Attributes:
        host: its name or address.
        port: its TCP port.
        database: name of the database.
        user: empty: the name the process runs under.
        password: never shown; empty: none is sent.
        options: further options of the client library.
    """

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
        return f"{POSTGRESQL}{self.host}:{self.port}/{self.database}"


class SqlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[sql]`` table: the database that takes the predictions.

    Example:
        >>> SqlSettings(url="postgresql://mill:s:e@cret@db.example:5433/fleet").server.password
        's:e@cret'
        >>> SqlSettings(url="postgresql://mill:s:e@cret@db.example:5433/fleet")
        SqlSettings(postgresql://db.example:5433/fleet)
    """

    url: str = "sqlite:///voltmill-data/voltmill.db"
    """A SQLite file: `sqlite:///` and its path, a fourth slash if it is absolute. Or a PostgreSQL server:
    `postgresql://USER:${PASSWORD}@HOST:PORT/DATABASE`, where nothing needs to be escaped; options of libpq may
    follow, such as `?sslmode=verify-full&sslrootcert=/etc/ca.pem`."""
    driver: str = ""
    """PostgreSQL: name or path of its ODBC driver; empty: the one of Debian's package `odbc-postgresql`."""
    timeout_seconds: float = 10.0
    """How long one attempt to connect, to write or to get a lock may take, s; then it is tried again."""
    outage_seconds: float = 0.0
    """How long a database that is away is waited for, s, before the flow ends; 0: as long as it takes. While it
    waits it reads nothing, so the messages wait at the broker."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not (self.timeout_seconds > 0 and self.outage_seconds >= 0):
            raise ValueError("timeout_seconds must be above 0 and outage_seconds at least 0")
        if self.url.startswith(POSTGRESQL):
            _server(self.url)
        elif not self.url.startswith(SQLITE) or self.url == SQLITE:
            raise ValueError(f"url must be {SQLITE}PATH or {POSTGRESQL}USER:PASSWORD@HOST:PORT/DATABASE")

    def __repr__(self) -> str:
        """Without the password."""
        return f"SqlSettings({self.place})"

    @property
    def place(self) -> str:
        """The database as messages name it: no secret in it."""
        return self.server.place if self.url.startswith(POSTGRESQL) else str(self.path)

    @property
    def path(self) -> Path:
        """The file of a SQLite database."""
        return Path(self.url.removeprefix(SQLITE))

    @property
    def server(self) -> Server:
        """The server of a PostgreSQL database."""
        return _server(self.url)


def _server(url: str) -> Server:
    """Take the URL apart. A password is taken as it stands, so that one from the environment needs no escapes."""
    login, _, rest = url.removeprefix(POSTGRESQL).rpartition("@")
    user, _, password = login.partition(":")
    found = _PLACE.fullmatch(rest)
    if not found or not 0 < int(found["port"] or _PORT) < 65_536:
        raise ValueError(f"url must be {POSTGRESQL}USER:PASSWORD@HOST:PORT/DATABASE")
    return Server(
        host=found["host"].strip("[]"),
        port=int(found["port"] or _PORT),
        database=found["database"],
        user=user,
        password=password,
        options=dict(pair.split("=", 1) for pair in (found["options"] or "").split("&") if pair),
    )
