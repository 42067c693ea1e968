"""What can be set about the database: the ``[sql]`` table."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from voltmill.connectors.sql_url import MSSQL, POSTGRESQL, Server, connection_string, is_connection_string, server

SQLITE: Final = "sqlite:///"
SYNAPSE: Final = "synapse://"
#: Of one interval, s: a year.
_LONGEST_SECONDS: Final = 366 * 86_400.0
_TARGETS: Final = ("soc", "soh", "rul")

Dialect = Literal["sqlite", "postgresql", "mssql"]


class SqlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[sql]`` table: the database that takes the predictions.

    Example:
        >>> SqlSettings(url="postgresql://mill:s:e@cret@db.example:5433/fleet").server.password
        's:e@cret'
        >>> SqlSettings(url="postgresql://mill:s:e@cret@db.example:5433/fleet")
        SqlSettings(postgresql://db.example:5433/fleet)
        >>> SqlSettings(url="Server=tcp:bms.database.windows.net,1433;Initial Catalog=fleet;User ID=mill;Password=x")
        SqlSettings(mssql://bms.database.windows.net:1433/fleet)
    """

    url: str = "sqlite:///voltmill-data/voltmill.db"
    """A SQLite file: `sqlite:///` and its path, a fourth slash if it is absolute. Or a PostgreSQL server:
    `postgresql://USER:${PASSWORD}@HOST:PORT/DATABASE`, where nothing needs to be escaped; options of libpq may
    follow, such as `?sslmode=verify-full&sslrootcert=/etc/ca.pem`. Or Azure SQL and SQL Server: `mssql://` in the
    same form, options of Microsoft's ODBC driver behind it; `mssql://HOST/DATABASE?authentication=entra` logs in with
    an Entra ID token; or a connection string as the Azure portal shows it, such as `${SQL_CONNECTION}`."""
    driver: str = ""
    """Name or path of the ODBC driver; empty: for PostgreSQL the one of Debian's package `odbc-postgresql`, for Azure
    SQL `ODBC Driver 18 for SQL Server`."""
    timeout_seconds: float = 10.0
    """How long one attempt to connect, to write or to get a lock may take, s; then it is tried again."""
    outage_seconds: float = 0.0
    """How long a database that is away is waited for, s, before the flow ends; 0: as long as it takes. While it
    waits it reads nothing, so the messages wait at the broker."""
    emit_every_seconds: dict[str, float] = {}
    """By target, how often predictions go to the database, s of event time: of each interval the first of each device
    and model, such as `{ soc = 60 }`. The lake gets all of them. A target that is not named goes to the database
    whole."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not (self.timeout_seconds > 0 and self.outage_seconds >= 0):
            raise ValueError("timeout_seconds must be above 0 and outage_seconds at least 0")
        for target, seconds in self.emit_every_seconds.items():
            if target not in _TARGETS:
                raise ValueError(f"emit_every_seconds: its targets must be of {', '.join(_TARGETS)}")
            if not 0.001 <= seconds <= _LONGEST_SECONDS:
                raise ValueError(f"emit_every_seconds: {target} must be from 0.001 to {_LONGEST_SECONDS:.0f}")
        if self.url.startswith(SYNAPSE):
            raise ValueError(
                "url must be no Synapse: its pools check no keys, so rows that come again would be there twice; "
                "it loads the files of the lake, each once, see deploy/sql/synapse"
            )
        if self.dialect != "sqlite":
            assert self.server
        elif not self.url.startswith(SQLITE) or self.url == SQLITE:
            raise ValueError(
                f"url must be {SQLITE}PATH, {POSTGRESQL}USER:PASSWORD@HOST:PORT/DATABASE, "
                f"{MSSQL}USER:PASSWORD@HOST:PORT/DATABASE or a connection string of the Azure portal"
            )

    def __repr__(self) -> str:
        """Without the password."""
        return f"SqlSettings({self.place})"

    @property
    def dialect(self) -> Dialect:
        """Which of the dialects the database speaks."""
        if self.url.startswith(POSTGRESQL):
            return "postgresql"
        return "mssql" if self.url.startswith(MSSQL) or is_connection_string(self.url) else "sqlite"

    @property
    def place(self) -> str:
        """The database as messages name it: no secret in it."""
        return str(self.path) if self.dialect == "sqlite" else self.server.place

    @property
    def path(self) -> Path:
        """The file of a SQLite database."""
        return Path(self.url.removeprefix(SQLITE))

    @property
    def server(self) -> Server:
        """The server of any other database."""
        if is_connection_string(self.url):
            return connection_string(self.url)
        return server(self.url, POSTGRESQL if self.dialect == "postgresql" else MSSQL)
