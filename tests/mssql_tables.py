"""What the tests of Azure SQL share: its stand-in, and settings that lead there."""

import contextlib
from collections.abc import Iterator
from typing import Any

from servers import find_psqlodbc, missing
from tds_server import TdsServer, find_driver

from voltmill.connectors.sql import SqlSettings


@contextlib.contextmanager
def serving(certificate: str = "", key: str = "") -> Iterator[TdsServer]:
    """The stand-in, and in this process the driver that talks to it."""
    find_psqlodbc()
    if find_driver() is None:
        missing("Microsoft's ODBC driver (mssql-python-odbc)")
    server = TdsServer(certificate, key)
    try:
        yield server
    finally:
        server.close()


def fresh(server: TdsServer, **options: Any) -> SqlSettings:
    """An empty database."""
    server.reset()
    return at(server, **options)


def at(
    server: TdsServer, login: str = "mill:s3cret", database: str = "fleet?Encrypt=no", **options: Any
) -> SqlSettings:
    """How to reach it."""
    return SqlSettings(url=f"mssql://{login}@127.0.0.1:{server.port}/{database}", driver=str(find_driver()), **options)
