"""One connection over ODBC, opened when it is needed, each of whose calls has a limit of time."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple

from voltmill.connectors import sql_odbc
from voltmill.connectors.sql_dialect import SqlError
from voltmill.connectors.time_limit import TimeLimit

#: The server ends a statement by itself, if it can; our own limit is for one that cannot, s later.
_GRACE_SECONDS: Final = 0.5
#: ODBC's manager has no such driver, or cannot load it.
_NO_DRIVER: Final = ("01000", "IM002", "IM003", "IM004")


class Way(NamedTuple):
    """How a connection is opened."""

    text: str
    """ODBC's connection string."""
    attributes: Mapping[int, bytes] = {}
    """Set before it is opened."""
    seconds: float = 3.0
    """An attempt at most: short, so that one begun just before the server's return does not hold up the next."""
    login_seconds: int = 0
    """The driver's own limit; 0: it has none, or the text says it."""
    long_text: bool = False
    """Parameters are texts of any length to the server, whatever length each has: one plan for all, and none is of an
    old type that functions do not take."""
    on_open: Callable[[], None] = lambda: None
    """Called once the server has let us in."""


class Session:
    """A connection of one dialect.

    Args:
        place: whose it is, as errors name it.
        seconds: the limit of a call, s.
        limit: cuts a call that takes longer.
        way: says how it is opened; called for each opening.
        setup: statement and parameters that each new connection begins with.
        install: what to do if the driver is missing.
    """

    def __init__(
        self,
        place: str,
        seconds: float,
        limit: TimeLimit,
        *,
        way: Callable[[ModuleType], Way],
        setup: tuple[str, ...],
        install: str,
    ) -> None:
        self._place, self._seconds, self._limit = place, seconds, limit
        self._way, self._setup, self._install = way, setup, install
        self._connection: Any = None
        self._cursor: Any = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    def execute(self, text: str, *parameters: str, seconds: float | None = None) -> Any:
        """Run a statement; opens the connection if there is none.

        Args:
            text: the statement.
            parameters: its parameters.
            seconds: another limit than that of the session.

        Returns:
            The cursor, good until the next call.

        Raises:
            SqlError: the driver is missing.
            Exception: one of ``pyodbc``.
        """
        if self._connection is None:
            self._open()
        with self._limit.calling((seconds or self._seconds) + _GRACE_SECONDS):
            return self._cursor.execute(text, *parameters)

    def rows(self, text: str, *parameters: str) -> list[tuple[Any, ...]]:
        """What a query gives.

        Raises:
            SqlError: the driver is missing.
            Exception: one of ``pyodbc``.
        """
        return list(map(tuple, self.execute(text, *parameters).fetchall()))

    def close(self) -> None:
        """Close the connection, also one that is broken; never raises."""
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except Exception:  # it was broken
                return

    def _open(self) -> None:
        module = sql_odbc.pyodbc(self._place)
        way = self._way(module)
        try:
            with self._limit.opening(2 * way.seconds):
                connection = module.connect(
                    way.text, autocommit=True, timeout=way.login_seconds, attrs_before=dict(way.attributes)
                )
        except module.Error as error:
            if sql_odbc.state(error) in _NO_DRIVER:
                raise SqlError(f"{self._place}: {sql_odbc.message(error)}; {self._install}") from error
            raise
        self._connection, self._cursor = connection, connection.cursor()
        way.on_open()
        if way.long_text:
            self._cursor.setinputsizes([(module.SQL_WVARCHAR, 0, 0)])
        try:
            self.execute(*self._setup)
        except BaseException:
            self.close()  # else the next call would take it for one that is set up
            raise
