"""PostgreSQL under chaos: stopped, killed, paused, cut off, and with triggers that refuse rows or pretend conflicts."""

import random
import threading
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from servers import PostgreSQL, find_psqlodbc

from chaos.databases import COLUMNS, REFUSED_DEVICES, table
from chaos.faults import DATABASE, Fault
from chaos.proxy import Proxy

_REFUSE: Final = f"""
CREATE OR REPLACE FUNCTION chaos() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.device_id LIKE '{REFUSED_DEVICES}' THEN
        RAISE EXCEPTION 'refused by chaos' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER chaos BEFORE INSERT ON predictions FOR EACH ROW EXECUTE FUNCTION chaos()
"""
#: Each second statement fails as if another transaction had been in its way.
_CONFLICT: Final = """
CREATE OR REPLACE FUNCTION chaos_conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF random() < 0.25 THEN
        RAISE EXCEPTION 'conflict by chaos' USING ERRCODE = 'serialization_failure';
    ELSIF random() < 0.33 THEN
        RAISE EXCEPTION 'deadlock by chaos' USING ERRCODE = 'deadlock_detected';
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER chaos_conflict BEFORE INSERT ON predictions
    FOR EACH STATEMENT EXECUTE FUNCTION chaos_conflict()
"""


class Postgresql:
    """A server behind a proxy; the suite itself talks to it directly."""

    name = "PostgreSQL"

    def __init__(self, folder: Path) -> None:
        self._driver = find_psqlodbc()  # loads what pyodbc needs, so that is imported after it
        self._server = PostgreSQL()
        self._proxy = Proxy(self._server.port)
        self._indexed = False
        self._asking = threading.local()
        url = self._server.url().replace(f":{self._server.port}/", f":{self._proxy.port}/")
        self.config = f'[sql]\nurl = "{url}"\ndriver = "{self._driver}"\n'

    def faults(self) -> list[Fault]:
        server, proxy, random_ = self._server, self._proxy, random.Random("postgresql")
        return [
            Fault("database stopped", DATABASE, server.stop, server.start, (0.5, 6.0)),
            Fault("database killed", DATABASE, server.kill, server.start, (0.5, 6.0)),
            Fault("database paused", DATABASE, server.pause, server.resume, (0.5, 15.0)),
            Fault("database unreachable", DATABASE, proxy.cut, proxy.restore, (0.5, 8.0)),
            Fault("database unreachable, minutes", DATABASE, proxy.cut, proxy.restore, (60.0, 90.0), rare=True),
            Fault("database silent", DATABASE, proxy.blackhole, proxy.restore, (0.5, 15.0)),
            Fault("database slow", DATABASE, lambda: proxy.delay(0.2), proxy.restore, (1.0, 4.0)),
            Fault("database connection dropped", DATABASE, lambda: proxy.drop(0.7, random_), lambda: None, (0.0, 0.1)),
            Fault("SQL refuses some rows", DATABASE, self._do(_REFUSE), self._undo("chaos"), (1.0, 4.0)),
            Fault("SQL conflicts", DATABASE, self._do(_CONFLICT), self._undo("chaos_conflict"), (2.0, 5.0)),
        ]

    def cut(self) -> None:
        """Reset its connections and refuse new ones."""
        self._proxy.cut()

    def restore(self) -> None:
        """Let connections through again."""
        self._proxy.restore()

    def newest(self) -> int:
        if not self._indexed:  # else each question would read the whole table
            self._indexed = self._number("SELECT count(*) FROM pg_tables WHERE tablename = 'predictions'") > 0
            if self._indexed:
                self._server.query("CREATE INDEX ON predictions (event_time)")
        return self._number("SELECT (extract(epoch from max(event_time)) * 1000000)::bigint FROM predictions")

    def since(self, event_time_us: int) -> int:
        since = f"to_timestamp({event_time_us} / 1000000.0)"
        return self._number(f"SELECT count(*) FROM predictions WHERE event_time >= {since}")

    def rows(self) -> pa.Table:
        times = COLUMNS.replace('"event_time"', "(extract(epoch from event_time) * 1000000)::bigint")
        connection = self._connect()
        try:
            return table(connection.execute(f"SELECT {times} FROM predictions"))
        finally:
            connection.close()

    def close(self) -> None:
        self._proxy.close()
        self._server.remove()

    def _connect(self) -> Any:
        import pyodbc

        server = self._server
        parts = f"DRIVER={self._driver};SERVER=127.0.0.1;PORT={server.port};DATABASE=postgres"
        # Rows in pieces: the driver would hold all of them at once.
        return pyodbc.connect(f"{parts};UID={server.user};PWD={{{server.password}}};UseDeclareFetch=1;Fetch=20000")

    def _number(self, query: str) -> int:
        """The answer to a question that is asked all the time: over a connection that is kept, one a thread."""
        import pyodbc

        try:
            if getattr(self._asking, "connection", None) is None:
                self._asking.connection = self._connect()
            row = self._asking.connection.execute(query).fetchone()
            self._asking.connection.commit()
            return int(row[0] or 0)
        except pyodbc.Error:
            self._asking.connection = None
            return 0

    def _do(self, statements: str) -> Any:
        return lambda: self._server.query(statements)

    def _undo(self, trigger: str) -> Any:
        return lambda: self._server.query(f"DROP TRIGGER IF EXISTS {trigger} ON predictions")
