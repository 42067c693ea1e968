"""A stand-in for Azure SQL that Microsoft's own ODBC driver talks to; it keeps rows, and fails as it is told.

It runs in a process of its own, for ``pyodbc`` keeps the interpreter to itself while it waits. It understands the
statements of ``connectors/sql_mssql_text.py`` and no others: the MERGE of its JSON parameter into rows by key, with the
errors of keys and nulls that the real one has, the SELECT of a table, and the CREATE TABLE of ``deploy/sql/mssql``
with its bookkeeping. Every other statement is noted and answered with nothing, or with what a test gave for it: it
cannot tell what is wrong with a statement, and undoes no transaction.
"""

import json
import os
import re
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import tds_wire as wire

Column = tuple[str, str, int, int, str | None]
#: Types that go over the wire as another one.
_WIRE = {"varchar": "nvarchar", "char": "nvarchar", "nchar": "nvarchar", "int": "bigint"}
_COLUMN = re.compile(r"^    \[?(\w+)\]? (\w+)(?:\((\d+)\))?(?: COLLATE (\w+))? (?:NOT )?NULL", re.M)


class SqlFailure(Exception):
    """An error of the server: its number and message; number 0: the connection is cut instead."""


class Store:
    """Tables and what is to go wrong, behind a lock; every public method is a command of the tests."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tables: dict[str, tuple[list[Column], list[str], dict[tuple[Any, ...], dict[str, Any]]]] = {}
        self._faults: list[list[Any]] = []
        self._answers: list[tuple[str, list[Any], list[Any]]] = []
        self._refused: tuple[str, list[Any]] = ("", [])
        self._seen: list[tuple[str, list[Any]]] = []
        self._logins: list[dict[str, str]] = []

    def reset(self) -> None:
        """As it was at the start, but for its connections."""
        self._tables, self._faults, self._answers = {}, [], []
        self._refused, self._seen, self._logins = ("", []), [], []

    def table(self, name: str, columns: list[Column], key: list[str]) -> None:
        self._tables[name] = ([*map(tuple, columns)], key, {})  # type: ignore[list-item]

    def drop(self, name: str) -> None:
        del self._tables[name]

    def fail(self, pattern: str, number: int, message: str = "injected", times: int = 1, seconds: float = 0) -> None:
        """The next statements that match, or ``login``, fail, after some seconds; number 0: the connection is cut."""
        self._faults.append([pattern, number, message, times, seconds])

    def answer(self, pattern: str, columns: list[Any], rows: list[Any]) -> None:
        self._answers.insert(0, (pattern, columns, rows))

    def refuse(self, column: str, values: list[Any]) -> None:
        """As a trigger that raises for those values would do it."""
        self._refused = (column, values)

    def statements(self) -> list[tuple[str, list[Any]]]:
        """What was run since the last call."""
        found, self._seen = self._seen, []
        return found

    def logins(self) -> list[dict[str, str]]:
        found, self._logins = self._logins, []
        return found

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(self._tables[name][2].values())

    def log_in(self, who: dict[str, str]) -> None:
        with self._lock:
            self._logins.append(who)
        self._check("login")

    def run(self, text: str, parameters: list[Any]) -> tuple[bytes, int]:
        """What comes of a statement: tokens, and the number of rows."""
        with self._lock:
            self._seen.append((text, parameters))
        self._check(text)
        with self._lock:
            if answer := next((a for a in self._answers if re.search(a[0], text)), None):
                return wire.table([tuple(c) for c in answer[1]], answer[2]), len(answer[2])
            if found := re.search(r"CREATE TABLE dbo\.(\w+) \((.*)\)", text, re.S):
                return self._create(*found.groups())
            if found := re.match(r"SELECT CASE WHEN OBJECT_ID\(N'dbo\.(\w+)'\) IS NULL THEN 0 ELSE 1 END", text):
                return wire.table([("", "bigint")], [[found[1] in self._tables]]), 1
            if found := re.match(r"INSERT INTO dbo\.voltmill_schema \(.*\) VALUES \((\d+), '(\w+)', '(\w+)'\)", text):
                self._tables["voltmill_schema"][2][int(found[1]),] = dict(
                    version=int(found[1]), name=found[2], sha256=found[3], applied_at="2026-11-22 00:00:00"
                )
                return b"", 1
            if "FROM sys.columns" in text:
                return self._columns(wire.names(text)[-1])
            if text.startswith("MERGE"):
                return b"", self._merge(text, json.loads(parameters[0]))
            if found := re.match(r"SELECT (.*) FROM \[?dbo\]?\.\[?(\w+)\]? ORDER BY (.*)", text):
                return self._select(*(part.replace("[", "").replace("]", "").split(", ") for part in found.groups()))
        return b"", 0

    def _check(self, what: str) -> None:
        with self._lock:
            fault = next((f for f in self._faults if f[3] and re.search(f[0], what)), None)
            if fault:
                fault[3] -= 1
        if fault:
            time.sleep(fault[4])
            raise SqlFailure(fault[1], fault[2])

    def _create(self, name: str, body: str) -> tuple[bytes, int]:
        if name not in self._tables:
            found: list[Column] = []
            for column, type_, size, collation in _COLUMN.findall(body):
                bytes_ = 2 * int(size) if type_ == "nvarchar" else 8
                found.append((column, type_, bytes_, int(size) if type_ == "datetime2" else 0, collation or None))
            key = re.search(r"PRIMARY KEY(?: CLUSTERED)? \((.*)\)", body)
            self.table(name, found, key[1].split(", ") if key else [found[0][0]])
        return b"", 0

    def _columns(self, name: str) -> tuple[bytes, int]:
        columns = self._tables[name][0] if name in self._tables else []
        types = ["nvarchar", "nvarchar", "bigint", "bigint", "nvarchar"]
        heads = zip(["name", "type_name", "max_length", "scale", "collation_name"], types, strict=True)
        return wire.table(list(heads), columns), len(columns)

    def _merge(self, text: str, rows: list[dict[str, Any]]) -> int:
        name = wire.names(text)[0]
        if name not in self._tables:
            raise SqlFailure(208, f"Invalid object name '{name}'.")
        columns, key, stored = self._tables[name]
        assert wire.names(text[text.index(" ON ") : text.index("WHEN")])[::2] == key
        fresh: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in rows:
            where = tuple(_compared(row[column]) for column in key)
            if None in where:
                raise SqlFailure(515, f"Cannot insert the value NULL into column '{key[where.index(None)]}'")
            if where in fresh:
                raise SqlFailure(8672, "The MERGE statement attempted to UPDATE or DELETE the same row more than once.")
            if row.get(self._refused[0]) in self._refused[1]:
                raise SqlFailure(50000, "no room\nfor it")
            fresh[where] = row
        stored.update(fresh)
        return len(fresh)

    def _select(self, names: list[str], table: list[str], order: list[str]) -> tuple[bytes, int]:
        columns, _, stored = self._tables[table[0]]
        types = {name: _WIRE.get(type_, type_) for name, type_, *_ in columns}
        rows = sorted(stored.values(), key=lambda row: [row[name] for name in order])
        return wire.table([(n, types[n]) for n in names], [[row[n] for n in names] for row in rows]), len(rows)


def _compared(value: Any) -> Any:
    return value.rstrip(" ") if isinstance(value, str) else value


class _Handler(socketserver.BaseRequestHandler):
    server: "_Server"

    def handle(self) -> None:
        self._wire = wire.Wire(self.request)
        self._prepared: dict[int, str] = {}
        self._transactions = 0
        try:
            if self._log_in():
                while True:
                    self._answer(*self._wire.read())
        except (OSError, SqlFailure):  # it is gone, or was cut
            return

    def _log_in(self) -> bool:
        asked = wire.options(self._wire.read()[1])
        encrypted = self.server.context is not None and asked[1] in (b"\x01", b"\x03")
        federated = asked.get(6) == b"\x01"
        self._wire.write(wire.prelogin(encrypted, federated))
        if encrypted and self.server.context is not None:
            self._wire.encrypt(self.server.context)
        who = wire.login(self._wire.read()[1]) | {"encrypted": "yes" if encrypted else ""}
        try:
            self.server.store.log_in(who)
        except SqlFailure as failure:
            self._fail(failure, severity=20)
            return False
        self._wire.write(wire.logged_in(federated=bool(who["token"])))
        return True

    def _answer(self, kind: int, content: bytes) -> None:
        if kind == wire.ATTENTION:
            return self._wire.write(wire.done(status=0x20))
        body = content[struct.unpack_from("<I", content)[0] :]  # behind the headers
        try:
            if kind == wire.BATCH:
                made, rows = self.server.store.run(body.decode("utf-16-le"), [])
                self._wire.write(made + wire.done(rows))
            elif kind == wire.TRANSACTION:
                self._wire.write(self._transaction(struct.unpack_from("<H", body)[0]))
            else:
                self._wire.write(b"".join(self._call(*call) for call in wire.calls(body)))
        except SqlFailure as failure:
            self._fail(failure)

    def _fail(self, failure: SqlFailure, severity: int = 16) -> None:
        number, message = failure.args
        if not number:
            raise failure
        self._wire.write(wire.error(number, message, severity) + wire.done(status=2))

    def _transaction(self, kind: int) -> bytes:
        self._transactions += kind == 5
        number = struct.pack("<Q", self._transactions)
        return (wire.environment(8, number) if kind == 5 else wire.environment(9, b"", number)) + wire.done()

    def _call(self, name: str, values: list[Any]) -> bytes:
        out, made, rows = b"", b"", 0
        if name == "sp_prepexec":
            self._prepared[len(self._prepared) + 1] = values[2]
            out = wire.handle(len(self._prepared))
            made, rows = self.server.store.run(values[2], values[3:])
        elif name == "sp_executesql":
            made, rows = self.server.store.run(values[0], values[2:])
        elif name == "sp_execute":
            made, rows = self.server.store.run(self._prepared[values[0]], values[1:])
        return made + wire.done(rows, status=0x11, kind=0xFF) + b"\x79\0\0\0\0" + out + wire.done(kind=0xFE)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    store = Store()
    context: ssl.SSLContext | None = None


def main(certificate: str = "", key: str = "") -> None:
    """Serve until the standard input ends; each of its lines is a command."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        if certificate:
            server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.context.load_cert_chain(certificate, key)
            server.context.maximum_version = ssl.TLSVersion.TLSv1_2  # as TDS 7.4 has it
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(json.dumps(server.server_address[1]), flush=True)
        for line in sys.stdin:
            name, arguments = json.loads(line)
            print(json.dumps(getattr(server.store, name)(**arguments)), flush=True)


class TdsServer:
    """The process, and its commands: those of ``Store``."""

    def __init__(self, certificate: str = "", key: str = "") -> None:
        command = [sys.executable, __file__, *filter(None, [certificate, key])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self._read()

    def __getattr__(self, name: str) -> Any:
        def command(**arguments: Any) -> Any:
            assert self.process.stdin is not None
            print(json.dumps([name, arguments]), file=self.process.stdin, flush=True)
            return self._read()

        return command

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def find_driver() -> Path | None:
    """Microsoft's driver; the manager that it needs is loaded by ``servers.find_psqlodbc``."""
    from importlib.util import find_spec

    spec = find_spec("mssql_python_odbc")
    folder = Path(spec.origin).parent if spec and spec.origin else Path(os.devnull)
    return next(folder.glob("libs/linux/debian_ubuntu/x86_64/lib/libmsodbcsql-18*"), None)


if __name__ == "__main__":
    main(*sys.argv[1:])
