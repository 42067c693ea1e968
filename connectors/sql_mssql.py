"""Azure SQL and SQL Server, through Microsoft's ODBC driver: one table with a typed column for each of the schema's.

A call is one statement with one parameter: the rows as JSON, which the server unfolds and merges. So it takes one
trip to the server and is a transaction by itself. Rows are sorted by key, so that two writers seldom meet in opposite
orders; the victim of a deadlock tries again.

The table is there: ``voltmill db apply`` makes it. Times are ``datetime2`` in UTC; NaN and null both are NULL.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pyarrow as pa

from voltmill.connectors import sql_json, sql_mssql_errors, sql_odbc
from voltmill.connectors.sql_dialect import Failure, SqlError
from voltmill.connectors.sql_entra import ATTRIBUTE, AwayError, Token
from voltmill.connectors.sql_mssql_rows import Rows, Unfit
from voltmill.connectors.sql_mssql_text import SESSION, Column, Statements, check, columns_query, types_for
from voltmill.connectors.sql_session import Session, Way
from voltmill.connectors.sql_settings import SqlSettings
from voltmill.connectors.time_limit import TimeLimit

_DRIVER: Final = "ODBC Driver 18 for SQL Server"
_INSTALL: Final = (
    "curl -sSLO https://packages.microsoft.com/config/debian/12/packages-microsoft-prod.deb && "
    "dpkg -i packages-microsoft-prod.deb && apt-get update && ACCEPT_EULA=Y apt-get install -y unixodbc msodbcsql18, "
    "or set [sql] driver"
)
#: Azure's gateway may send a client on to the node of the database, at one of these
#: (https://learn.microsoft.com/azure/azure-sql/database/connectivity-architecture).
_REDIRECTED: Final = range(11_000, 12_000)
#: A statement of the schema at most, s: an index over years of rows takes minutes.
_RUN_SECONDS: Final = 3600
#: Ways to say that Entra ID gives the token; of others the driver takes care.
_ENTRA: Final = ("entra", "activedirectorydefault", "activedirectorymsi", "activedirectorymanagedidentity")
#: The databases that let this process in, through whichever connection: what they say of a login passes from then on.
_let_in: Final = set[str]()


class MssqlDatabase:
    """One table of Azure SQL or SQL Server.

    Args:
        settings: where.
        table: its name.
        schema: of every batch; columns of text, numbers, times and labels.
        key: the columns of the primary key.
        token: gives the token for Entra ID; for tests.

    Raises:
        ValueError: the schema or the key cannot be stored.
    """

    def __init__(
        self, settings: SqlSettings, table: str, schema: pa.Schema, key: Sequence[str], *, token: Token | None = None
    ) -> None:
        check(table, schema, key)
        self._settings, self._server, self._table = settings, settings.server, table
        self._schema, self._key = schema, tuple(key)
        self._rows = Rows(schema, self._key)
        self._token = token or Token(self.place, self._server.user)
        self._found: dict[str, Column] = {}
        self._text: Statements | None = None
        self._session = Session(
            self.place,
            settings.timeout_seconds,
            TimeLimit(self._server.port, _REDIRECTED),
            way=self._way,
            setup=(SESSION.format(round(1000 * settings.timeout_seconds)),),
            install=_INSTALL,
        )

    @property
    def place(self) -> str:
        """Server and table."""
        return f"{self._settings.place}: table {self._table}"

    def check(self) -> None:
        """Check the columns of the table, and try to merge no rows into it, which shows the rights that are missing.

        Raises:
            SqlError: there is none, or one with other columns.
        """
        self._text = None
        self._session.execute(self._statements().upsert, "[]")

    def upsert(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Store all rows in one statement, over older ones of the same keys."""
        text = self._statements().upsert
        self._session.execute(text, self._rows.text(batches, self._found))

    def run(self, statements: Sequence[str]) -> None:
        """Run statements in one transaction."""
        try:
            for statement in ("BEGIN TRANSACTION", *statements, "COMMIT TRANSACTION"):
                self._session.execute(statement, seconds=_RUN_SECONDS)
        except BaseException:
            self.close()  # and the server undoes what was not committed
            raise
        self._text = None

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query gives."""
        return self._session.rows(query)

    def durable(self) -> None:
        """Nothing to do: a commit waits for the disk."""

    def classify(self, error: Exception) -> Failure:
        """By the server's number, then by SQLSTATE."""
        if isinstance(error, Unfit):
            return Failure.REFUSED
        if isinstance(error, AwayError):
            return Failure.TRANSIENT
        return sql_mssql_errors.classify(error, let_in=self._settings.place in _let_in)

    def explain(self, error: Exception) -> str:
        """The server's message; the password is not in it, whoever wrote it."""
        text, password = sql_mssql_errors.message(error), self._server.password
        return text.replace(password, "***") if len(password) > 3 else text  # a shorter one is a part of any text

    def mend(self, error: Exception) -> str:
        """By the server's number."""
        return sql_mssql_errors.mend(error)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def read(self) -> pa.Table:
        """Every row, ordered by key.

        Raises:
            SqlError: the database cannot be read.
        """
        try:
            return sql_json.table(self._session.rows(self._statements().select), self._schema)
        except Exception as error:
            if isinstance(error, SqlError):
                raise
            raise SqlError(f"{self.place}: {self.explain(error)}") from error
        finally:
            self.close()

    def _statements(self) -> Statements:
        """For the table that is there; its columns are looked at once."""
        if self._text is None:
            found = self._session.rows(columns_query(self._table))
            if not found:
                raise SqlError(f"{self.place}: there is no such table; make it: voltmill db apply")
            self._found = {name: Column.of(*about) for name, *about in found}
            if what := self._unlike():
                raise SqlError(f"{self.place}: the table has other columns: {what}; rename it")
            self._text = Statements.of(self._table, self._schema, self._key, self._found)
        return self._text

    def _unlike(self) -> str:
        """What is wrong with the columns of the table; empty: nothing."""
        for field in self._schema:
            column = self._found.get(field.name)
            if column is None:
                return f"{field.name} is missing"
            if column.base not in types_for(field):
                return f"{field.name} is {column.type}, not {' or '.join(types_for(field))}"
            if field.name in self._key and column.collation and "_BIN" not in column.collation:
                return f"{field.name} has collation {column.collation}, to which different keys are the same"
        return ""

    def _way(self, module: ModuleType) -> Way:
        server = self._server
        options = {name.lower(): value for name, value in server.options.items()}
        parts = {
            "DRIVER": self._settings.driver or _driver(module.drivers()),
            "SERVER": f"tcp:{server.host},{server.port}",
            "DATABASE": server.database,
            "APP": "voltmill",
            "Encrypt": options.pop("encrypt", "yes"),
            "ConnectRetryCount": "0",  # it is ours to connect again, and to say so
        }
        attributes: Mapping[int, bytes] = {}
        if options.get("authentication", "").lower().replace(" ", "") in _ENTRA:
            del options["authentication"]
            attributes = {ATTRIBUTE: self._token.attribute()}
        else:
            parts |= {"UID": server.user, "PWD": server.password} if server.user else {"Trusted_Connection": "yes"}
        return Way(
            sql_odbc.connection_string(**parts, **options),
            attributes=attributes,
            seconds=self._settings.timeout_seconds,
            login_seconds=max(1, round(self._settings.timeout_seconds)),
            long_text=True,
            on_open=self._entered,
        )

    def _entered(self) -> None:
        _let_in.add(self._settings.place)


def _driver(registered: Iterable[str]) -> str:
    """The driver by its name, where it has one, else that of the package ``mssql-python-odbc``, if it is installed."""
    if _DRIVER in registered:
        return _DRIVER
    package = find_spec("mssql_python_odbc")
    folder = Path(package.origin).parent if package and package.origin else None
    found = sorted(folder.glob("libs/linux/debian_ubuntu/*/lib/libmsodbcsql-18*.so*")) if folder else []
    return str(found[-1]) if found else _DRIVER
