"""What the dialects over ODBC share: opening a connection, and reading an error.

``pyodbc`` is loaded when a connection is opened, not before: it needs unixODBC, which a flow that writes to
SQLite does without.
"""

import importlib
import re
from types import ModuleType
from typing import Any, Final

from voltmill.connectors.sql_dialect import SqlError

_PLAIN: Final = re.compile(r"[\w.:/ -]+")


def pyodbc(place: str) -> ModuleType:
    """The module.

    Raises:
        SqlError: unixODBC is not installed; ``place`` is whose connection needs it.
    """
    try:
        module = importlib.import_module("pyodbc")
    except ImportError as error:
        raise SqlError(f"{place}: needs unixODBC: apt-get install unixodbc ({error})") from error
    module.pooling = False  # type: ignore[attr-defined]  # a connection that broke must not come back
    return module


def connection_string(**parts: str) -> str:
    """Keywords and values, each taken literally; braces only where they are needed, for not every driver strips them.

    Example:
        >>> connection_string(PORT="5432", PWD="a;b}c")
        'PORT=5432;PWD={a;b}}c}'
    """
    return ";".join(f"{key}={value if _PLAIN.fullmatch(value) else _braced(value)}" for key, value in parts.items())


def _braced(value: str) -> str:
    return "{" + value.replace("}", "}}") + "}"


def state(error: Exception) -> str:
    """The SQLSTATE of an error of ``pyodbc``; empty for any other."""
    return str(error.args[0]) if type(error).__module__ == "pyodbc" and len(error.args) == 2 else ""


def message(error: Exception) -> str:
    """What server or driver said, on one line: without the state and the names of ODBC's calls.

    Example:
        >>> message(Exception("23514", "[23514] ERROR: no room; Error while executing the query (1) (SQLExecDirectW)"))
        'ERROR: no room'
    """
    text: Any = error.args[-1] if error.args else error
    line = " ".join(str(text).split())
    line = re.sub(r"^(\[[^\]]*\] ?)+", "", line)
    return re.sub(r";? ?(Error while [\w ]+?)? ?\(-?\d+\) \(SQL\w+\)$", "", line)
