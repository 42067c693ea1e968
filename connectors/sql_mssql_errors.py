"""What an error of Azure SQL or SQL Server means, by its number and SQLSTATE; the class of ``pyodbc`` says nothing.

Numbers: https://learn.microsoft.com/azure/azure-sql/database/troubleshoot-common-errors-issues and
https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
"""

import re
from typing import Final

from voltmill.connectors import sql_odbc
from voltmill.connectors.sql_dialect import Failure

_TRANSIENT: Final = {
    *(1205, 1222),  # deadlock; a lock that was waited for too long
    *(4060, 4221, 40020, 40143, 40166, 40197, 40501, 40540, 40549, 40550, 40613),  # failover, reconfiguration, load
    *(10928, 10929, 10936, 42108, 42109, 49918, 49919, 49920),  # limits of a pool; waking up
    *(701, 802, 8645, 8651),  # memory
    *(1101, 1105, 9002, 40544),  # full: disk, log, quota
    *(615, 926, 983, 3906, 18401, 40648),  # a database that is being recovered or replaced, and is read-only so long
}
_REFUSED: Final = {
    *(2601, 2627, 547, 515, 550),  # a key that is there, a constraint, NULL where none may be
    *(8152, 2628),  # a text too long
    *(220, 232, 241, 242, 245, 248, 8114, 8115),  # conversions
    *(1946, 8672),  # a key too long for its index; a key twice for the server, such as one with a space behind it
    *(3609, 3616),  # ended in a trigger
}
#: While nobody was ever let in, these are a mistake of somebody who sets this up, and told at once.
_AT_FIRST: Final = {4060, 40615, 40914, 40532, 47073}
#: Raised by a constraint or trigger of somebody's own.
_USERS_OWN: Final = 50_000

_MENDS: Final = {
    208: "make the tables: voltmill db apply",
    229: "GRANT SELECT, INSERT, UPDATE ON SCHEMA::dbo TO the user",
    4060: "mend the name of the database, or give the login a user in it: CREATE USER",
    18456: "mend user and password, or with Entra ID: CREATE USER [name of the identity] FROM EXTERNAL PROVIDER",
    40532: "write the user as NAME@SERVER, or mend the name of the server",
    40615: "open the firewall: az sql server firewall-rule create --start-ip-address … --end-ip-address …",
    40914: "add the subnet to the server's virtual network rules",
    47073: "allow public access on the server, or use its private endpoint",
}
#: What the driver says by itself, without a number of the server; it does not pass.
_TLS: Final = re.compile(r"certificate|SSL routines|self.signed|unsupported protocol", re.I)
_NUMBER: Final = re.compile(r" \((-?\d+)\) \(SQL\w+\)")


def number(error: Exception) -> int:
    """The number of the first message of an error; 0: it has none.

    Example:
        >>> number(Exception("42000", "[42000] [Microsoft][ODBC Driver 18]too busy (40501) (SQLExecDirectW)"))
        40501
    """
    found = _NUMBER.search(str(error.args[-1])) if error.args else None
    return int(found[1]) if found else 0


def classify(error: Exception, *, let_in: bool) -> Failure:
    """What it means for the work that it stopped.

    Args:
        error: of ``pyodbc``; any other is fatal.
        let_in: whether this database ever let us in.
    """
    state, code = sql_odbc.state(error), number(error)
    if state.startswith("08") and _TLS.search(str(error)):
        return Failure.FATAL
    if code in _AT_FIRST:
        return Failure.TRANSIENT if let_in else Failure.FATAL
    if state.startswith(("08", "HYT")) or code in _TRANSIENT or state == "40001":
        return Failure.TRANSIENT
    if code in _REFUSED or code >= _USERS_OWN or state.startswith(("22", "23")):
        return Failure.REFUSED
    return Failure.FATAL


def message(error: Exception) -> str:
    """The first message, on one line, without the names of ODBC's calls."""
    text = str(error.args[-1]) if error.args else str(error)
    return sql_odbc.message(Exception(_NUMBER.split(text)[0]))


def mend(error: Exception) -> str:
    """What mends it, on one line; empty: that is not known, or it passes by itself."""
    away = sql_odbc.state(error).startswith(("08", "HYT"))
    if away and _TLS.search(str(error)):
        return "trust the server's certificate on this machine; TrustServerCertificate=yes only for tests"
    closed = "check host and port, whether the server runs, and open the firewall for this machine"
    return _MENDS.get(number(error), closed if away else "")
