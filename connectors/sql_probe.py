"""Tries the database of the ``[sql]`` table: the login, its schema, and the rights that the flow needs."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from voltmill.connectors.probe import Finding
from voltmill.connectors.sql import PREDICTIONS, open_database
from voltmill.connectors.sql_dialect import Database, SqlError
from voltmill.connectors.sql_schema import Schema
from voltmill.connectors.sql_settings import SqlSettings

#: For one call, s: several of them come together in what a probe may take.
_SECONDS: Final = 3.0
#: One row: whether this login may make tables.
_MAY_CREATE: Final = {
    "postgresql": "SELECT CASE WHEN has_schema_privilege(current_schema(), 'CREATE') THEN 1 ELSE 0 END",
    "mssql": "SELECT HAS_PERMS_BY_NAME(DB_NAME(), 'DATABASE', 'CREATE TABLE')",
}
_APPLY: Final = "run voltmill db apply with a login that may"


def probe(settings: SqlSettings) -> Finding:
    """Whether the database lets us in and takes predictions; within ten seconds, changes and raises nothing.

    Args:
        settings: where it is.
    """
    place = f"database {settings.place}"
    if settings.dialect == "sqlite":
        return _file(place, settings.path)
    limited = msgspec.structs.replace(settings, timeout_seconds=min(_SECONDS, settings.timeout_seconds))
    database = open_database(limited)
    try:
        return _tried(place, database, limited)
    except SqlError as error:
        text = str(error).removeprefix(f"{database.place}: ").removeprefix(f"{settings.place}: ")
        problem, _, mend = text.partition("; ")
        return Finding(place, problem, mend)
    except Exception as error:
        return Finding(place, database.explain(error), database.mend(error))
    finally:
        database.close()


def _tried(place: str, database: Database, settings: SqlSettings) -> Finding:
    status = Schema(database, settings, PREDICTIONS).status()
    pending = ", ".join(one.name for one in status.pending)
    if pending and not int(database.rows(_MAY_CREATE[settings.dialect])[0][0] or 0):
        return Finding(place, f"its schema lacks {pending}, and this login may make no tables", _APPLY)
    if status.version:
        database.check()
    facts = f"schema at version {status.version}" if status.version else "no schema yet"
    return Finding(place, facts=f"{facts}; the first start applies {pending}" if pending else facts)


def _file(place: str, path: Path) -> Finding:
    """Whether it is a database, or could become one, and may be written."""
    mend = "give this user the right, or name another file in [sql] url"
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    folder = there if path != there and there.is_dir() else there.parent
    if not path.exists():
        if not there.is_dir():
            return Finding(place, f"{there} is a file", "name a folder that is one in [sql] url")
        if not os.access(there, os.W_OK | os.X_OK):
            return Finding(place, f"this user may not write {there}", mend)
        return Finding(place, facts="made at the first start")
    if not (os.access(path, os.W_OK) and os.access(folder, os.W_OK | os.X_OK)):
        return Finding(place, f"this user may not write it, or the folder {folder}", mend)
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            query = "SELECT max(version) FROM voltmill_schema"
            version = connection.execute(query).fetchone()[0] if "voltmill_schema" in tables else None
    except sqlite3.Error as error:
        return Finding(place, str(error), "name another file in [sql] url")
    return Finding(place, facts=f"schema at version {version}" if version else "no schema yet")
