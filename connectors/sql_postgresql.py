"""PostgreSQL, through ODBC: one table with a typed column for each of the schema's, which reports read directly.

A call is one statement with one parameter: the rows as JSON, which the server unfolds, sorts by key and
upserts. So it takes one trip to the server and is a transaction by itself; the order keeps two writers from
locking each other out for good. Measured, server and client on one core each: about 55,000 rows/s.

Texts are compared byte by byte (``COLLATE "C"``), which is quicker than by a language and means the same after
an upgrade of the system. Times are ``timestamptz``; NaN and null both are NULL.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from voltmill.connectors import sql_json, sql_odbc
from voltmill.connectors.sql_dialect import Failure, SqlError
from voltmill.connectors.sql_postgresql_text import COLUMNS, MIGRATING, SESSION, Statements
from voltmill.connectors.sql_session import Session, Way
from voltmill.connectors.sql_settings import SqlSettings
from voltmill.connectors.sql_text import quoted
from voltmill.connectors.time_limit import TimeLimit

_DRIVER: Final = "PostgreSQL Unicode"  # as Debian's package registers it
_INSTALL: Final = "apt-get install odbc-postgresql, or set [sql] driver"
#: An attempt to connect, s, so that one begun just before the server's return does not hold up the next.
_CONNECT_SECONDS: Final = 3
#: A statement of the schema at most, s: an index over years of rows takes minutes.
_RUN_SECONDS: Final = 3600

#: By SQLSTATE, or its class (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_REFUSED: Final = {
    "22",  # data exception: out of range, a character that a text cannot hold
    "23",  # a constraint
    "44",  # the check option of a view
    "P0",  # raised by a trigger
    "54000",  # the key is too long for its index
}
_TRANSIENT: Final = {
    "08",  # connection
    "25",  # read-only: a server that is being replaced, or its standby
    "40",  # deadlock, serialization failure
    "53",  # disk full, memory, too many connections
    "55",  # locked
    "57",  # ended by administrator, crash, time limit
    "58",  # the server's system
    "HY",  # the driver's: connection lost in the middle of a call, memory
}
#: What libpq says without a SQLSTATE when the server is there and lets us in for no time of waiting.
_NOT_LET_IN: Final = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|does not exist|not permitted to log in"
    r"|permission denied for database|does not support SSL|certificate|invalid (sslmode|connection option)"
)
#: By what was said, for where a connection is refused there is no other state.
_MENDS: Final = {
    r"authentication failed|no password supplied|not permitted to log in": "mend user and password",
    r"no pg_hba\.conf entry": "let this machine in: a line in the server's pg_hba.conf",
    r"database .* does not exist": "mend its name, or CREATE DATABASE",
    r"permission denied for (table|schema|sequence)": "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public",
    r"certificate": "set sslrootcert to the authority of the server's certificate, and the host to its name",
    r"refused|timed? ?out|translate host name|unreachable": (
        "check host and port, whether the server runs, and open the firewall for this machine"
    ),
}


class PostgresqlDatabase:
    """One table on a PostgreSQL server.

    Args:
        settings: where.
        table: its name.
        schema: of every batch; columns of text, numbers, times and labels.
        key: the columns of the primary key.

    Raises:
        ValueError: the schema or the key cannot be stored.
    """

    def __init__(self, settings: SqlSettings, table: str, schema: pa.Schema, key: Sequence[str]) -> None:
        self._settings, self._server, self._table = settings, settings.server, table
        self._schema, self._key = schema, tuple(key)
        self._text = Statements.of(table, schema, key)
        self._encoder = sql_json.Encoder(schema)
        self._session = Session(
            self.place,
            settings.timeout_seconds,
            TimeLimit(self._server.port),
            way=lambda module: Way(self._connection_string(module.drivers()), seconds=_CONNECT_SECONDS),
            setup=(SESSION, str(round(1000 * settings.timeout_seconds))),
            install=_INSTALL,
        )

    @property
    def place(self) -> str:
        """Server and table."""
        return f"{self._settings.place}: table {self._table}"

    def check(self) -> None:
        """Check the columns of the table, and try the upsert on no rows, which shows what it lacks.

        Raises:
            SqlError: there is none, or one with other columns.
        """
        found = self._columns()
        if not found:
            raise SqlError(f"{self.place}: there is no such table; make it: voltmill db apply")
        for name, type_ in self._text.types.items():
            if found.get(name) != type_:
                what = f"{name} is {found[name]}, not {type_}" if name in found else f"{name} is missing"
                raise SqlError(f"{self.place}: the table has other columns: {what}; rename it")
        self._session.execute(self._text.upsert, "[]")

    def upsert(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Store all rows in one statement, over older ones of the same keys."""
        rows: list[Any] = []
        for batch in batches:
            rows += self._encoder.rows([sql_json.values(column) for column in batch.columns])
        self._session.execute(self._text.upsert, self._encoder.text(rows))

    def run(self, statements: Sequence[str]) -> None:
        """Run statements in one transaction."""
        try:
            self._session.execute("BEGIN")
            self._session.execute(
                MIGRATING, str(1000 * _RUN_SECONDS), str(round(1000 * self._settings.timeout_seconds))
            )
            for statement in (*statements, "COMMIT"):
                self._session.execute(statement, seconds=_RUN_SECONDS)
        except BaseException:
            self.close()  # and the server undoes what was not committed
            raise

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query gives."""
        return self._session.rows(query)

    def durable(self) -> None:
        """Nothing to do: a commit waits for the disk."""

    def classify(self, error: Exception) -> Failure:
        """By SQLSTATE; where the connection was refused also by what was said, for then there is no other state."""
        state = sql_odbc.state(error)
        if state.startswith("08") and _NOT_LET_IN.search(str(error)):
            return Failure.FATAL
        if {state, state[:2]} & _REFUSED:
            return Failure.REFUSED
        return Failure.TRANSIENT if state[:2] in _TRANSIENT else Failure.FATAL

    def explain(self, error: Exception) -> str:
        """The server's message; the password is not in it, whoever wrote it."""
        text, password = sql_odbc.message(error), self._server.password
        return text.replace(password, "***") if len(password) > 3 else text  # a shorter one is a part of any text

    def mend(self, error: Exception) -> str:
        """By what the server or libpq said."""
        return next((mend for said, mend in _MENDS.items() if re.search(said, str(error))), "")

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def read(self) -> pa.Table:
        """Every row, ordered by key.

        Raises:
            SqlError: the database cannot be read.
        """
        try:
            return sql_json.table(self._session.rows(self._text.select), self._schema)
        except Exception as error:
            if isinstance(error, SqlError):
                raise
            raise SqlError(f"{self.place}: {self.explain(error)}") from error
        finally:
            self.close()

    def _columns(self) -> dict[str, str]:
        """Name and type of each column of the table that is there."""
        return dict(self._session.rows(COLUMNS, quoted(self._table)))

    def _connection_string(self, registered: Sequence[str]) -> str:
        server = self._server
        options = {"connect_timeout": str(_CONNECT_SECONDS), "keepalives_idle": "30", "application_name": "voltmill"}
        options |= server.options
        parts = {
            "DRIVER": self._settings.driver or _driver(registered),
            "SERVER": server.host,
            "PORT": str(server.port),
            "DATABASE": server.database,
            "UID": server.user,
            "PWD": server.password,
            "SSLmode": options.pop("sslmode", "prefer"),
            "pqopt": " ".join(f"{name}={_libpq(value)}" for name, value in options.items()),
        }
        return sql_odbc.connection_string(**{key: value for key, value in parts.items() if value})


def _driver(registered: Sequence[str]) -> str:
    """The driver by its name, where it has one, else its file in Debian's place."""
    if _DRIVER in registered:
        return _DRIVER
    return next(map(str, Path("/usr/lib").glob("*-linux-gnu*/odbc/psqlodbcw.so")), _DRIVER)


def _libpq(value: str) -> str:
    """A value in a connection string of libpq."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
