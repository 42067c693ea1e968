"""The schema of the database as code: numbered files of SQL, applied in order, each once.

They stand in ``deploy/sql/{dialect}/NNN_name.sql`` and are part of the package (``voltmill/sql``). What was applied is
written in the table ``voltmill_schema``. This is the only way in which tables, indexes and views are made: the
flow's start applies what is missing, and so does ``voltmill db apply``.

A file and its record are one transaction. The record comes first and its key is the version, so of several processes
that apply the same file at once the others wait for the first one, fail at the key, and find it done. A file that was
applied never changes: what is to be different comes in a new one.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import voltmill
from voltmill.connectors.sql_dialect import Database, Failure, SqlError
from voltmill.connectors.sql_settings import SqlSettings

_FOLDER: Final = Path(voltmill.__file__).parent / "sql"
#: The file that makes the table of what was applied: run before all others, recorded nowhere.
_FIRST: Final = "000_schema"
_TABLE: Final = "voltmill_schema"
#: One row: whether there is a table or view of a name.
_EXISTS: Final = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = '{}'",
    "postgresql": "SELECT CASE WHEN to_regclass('{}') IS NULL THEN 0 ELSE 1 END",
    "mssql": "SELECT CASE WHEN OBJECT_ID(N'dbo.{}') IS NULL THEN 0 ELSE 1 END",
}


class Migration(NamedTuple):
    """One file.

    Attributes:
        version: its number.
        name: of the file, without ``.sql``.
        text: what stands in it.
    """

    version: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Applied(NamedTuple):
    """A row of ``voltmill_schema``."""

    version: int
    name: str
    sha256: str
    applied_at: str
    """As the database shows it, UTC."""


@dataclass(frozen=True)
class Status:
    """Where a database stands.

    Attributes:
        applied: in order.
        pending: what this version of voltmill would apply, in order.
    """

    applied: tuple[Applied, ...]
    pending: tuple[Migration, ...]

    @property
    def version(self) -> int:
        """The highest version that was applied; 0: none."""
        return max((one.version for one in self.applied), default=0)


def migrations(dialect: str) -> list[Migration]:
    """The files of a dialect (``sqlite``, ``postgresql``, ``mssql``), in order.

    Example:
        >>> [one.name for one in migrations("postgresql")]
        ['001_tables', '002_reports']
    """
    return [_read(dialect, name) for name in _names(dialect) if name != _FIRST]


def statements(text: str) -> list[str]:
    r"""The statements of a file: parted by lines of ``GO``, or where there are none, by ``;`` and an empty line.

    Example:
        >>> statements("-- one\nCREATE TABLE a (b text);\n\nSELECT 1;\n")
        ['-- one\nCREATE TABLE a (b text)', 'SELECT 1']
    """
    if "\nGO\n" in text:
        parts = text.split("\nGO\n")
    else:
        parts = [part.strip().removesuffix(";") for part in f"{text.strip()}\n\n".split(";\n\n")]
    return [part.strip() for part in parts if part.strip()]


class Schema:
    """The schema of one database.

    Args:
        database: where; its table is checked before the first file is applied, if an earlier version made it.
        settings: of the same database.
        table: name of that table.
    """

    def __init__(self, database: Database, settings: SqlSettings, table: str) -> None:
        self.database, self._table = database, table
        self._settings, self._place, self._dialect = settings, settings.place, settings.dialect
        self._name = f"dbo.{_TABLE}" if self._dialect == "mssql" else _TABLE
        self._files = migrations(settings.dialect)

    def status(self) -> Status:
        """What was applied, and what was not; changes nothing.

        Raises:
            SqlError: the schema is a newer one, or a file that was applied is not the one that this version has.
            Exception: one for ``Database.classify``.
        """
        if self._dialect == "sqlite" and not self._settings.path.is_file():
            return self._status(())
        return self._status(self._recorded() if self._there(_TABLE) else ())

    def apply(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Apply what is missing; may be called again, and by several processes at once.

        Args:
            say: called with one line a file that was applied.

        Raises:
            SqlError: as ``status``; or a file cannot be applied, then nothing of it was.
            Exception: one for ``Database.classify`` that passes.
        """
        self._begin()
        found = self._status(self._recorded())
        if not found.applied and self._there(f"{self._table}_rows" if self._dialect == "sqlite" else self._table):
            self.database.check()  # of an earlier version; the files would take over whatever bears the name
        for one in found.pending:
            if self._apply(one):
                say(f"{one.name} applied")

    def _begin(self) -> None:
        """Make the table of what was applied. A SQLite file is made by it as well."""
        if self._dialect != "sqlite" and self._there(_TABLE):
            return  # a login that may not make tables need not
        try:
            self.database.run(statements(_read(self._dialect, _FIRST).text))
        except Exception as error:
            if isinstance(error, SqlError) or not self._there(_TABLE):  # else another process was faster
                self._raise(error, _FIRST)

    def _apply(self, one: Migration) -> bool:
        record = (
            f"INSERT INTO {self._name} (version, name, sha256) VALUES ({one.version}, '{one.name}', '{one.sha256}')"
        )
        try:
            self.database.run([record, *statements(one.text)])
        except Exception as error:
            if isinstance(error, SqlError) or not any(row.version == one.version for row in self._recorded()):
                self._raise(error, one.name)
            return False
        return True

    def _raise(self, error: Exception, name: str) -> NoReturn:
        """Raise what passes as it is, and what does not as one line that names the file."""
        if isinstance(error, SqlError) or self.database.classify(error) is Failure.TRANSIENT:
            raise error
        text = self.database.explain(error)
        mend = "; run voltmill db apply with a login that may" if "permission" in text.lower() else ""
        raise SqlError(f"{self._place}: schema {name}: {text}{mend}") from error

    def _there(self, name: str) -> bool:
        return bool(int(self.database.rows(_EXISTS[self._dialect].format(name))[0][0]))

    def _recorded(self) -> Sequence[Applied]:
        query = f"SELECT version, name, sha256, applied_at FROM {self._name} ORDER BY version"
        return tuple(_applied(*row) for row in self.database.rows(query))

    def _status(self, applied: Sequence[Applied]) -> Status:
        known = {one.version: one for one in self._files}
        for row in applied:
            if row.version not in known:
                raise SqlError(
                    f"{self._place}: its schema is at version {row.version} ({row.name}), and this voltmill knows "
                    f"none above {max(known)}: install the newer voltmill that made it"
                )
            if row.sha256 != known[row.version].sha256:
                raise SqlError(
                    f"{self._place}: {row.name} was applied with another content than {known[row.version].name} of "
                    "this voltmill has: a file that was applied is not changed; put it back, and add a new one"
                )
        done = {row.version for row in applied}
        return Status(tuple(applied), tuple(one for one in self._files if one.version not in done))


def _applied(version: Any, name: str, sha256: str, applied_at: Any) -> Applied:
    return Applied(int(version), name, sha256, str(applied_at))


def _names(dialect: str) -> list[str]:
    return sorted(file.stem for file in (_FOLDER / dialect).glob("*.sql"))


def _read(dialect: str, name: str) -> Migration:
    text = (_FOLDER / dialect / f"{name}.sql").read_text(encoding="utf-8")
    return Migration(int(name.partition("_")[0]), name, text)
