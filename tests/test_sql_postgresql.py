import contextlib
import importlib
import logging
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import pytest
import stored_flow
from servers import Certificates, PostgreSQL
from sql_tables import by_key, connect, locked, on, query, reject, table, writer
from stored_flow import predictions

from voltmill.connectors import sql_odbc
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlError, SqlSettings, read_rows
from voltmill.connectors.sql_dialect import Failure
from voltmill.connectors.sql_postgresql import PostgresqlDatabase
from voltmill.connectors.sql_writer import Refused, Writer
from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY


@pytest.fixture
def where(postgresql: PostgreSQL) -> SqlSettings:
    return on(postgresql, timeout_seconds=1.0)


class Waited:
    """A writer with all the patience there is, and what it said of its waiting."""

    def __init__(self, where: SqlSettings) -> None:
        self.waiting = threading.Event()
        self.refused: list[Refused] = []
        patience = Patience("a database", seconds=60.0, on_waiting=self._note)
        self.writer: Writer = writer(where, patience=patience)

    def _note(self, waits: bool) -> None:
        self.waiting.set() if waits else self.waiting.clear()

    @contextlib.contextmanager
    def writing(self, first: int, rows: int) -> Iterator[None]:
        """Writes while the body runs; the body ends once the outage is over, then 5 s are left."""
        work = threading.Thread(target=lambda: self.refused.extend(self.writer.write([predictions(first, rows)])))
        work.start()
        try:
            assert self.waiting.wait(20)
            yield
        finally:
            began = time.monotonic()
            work.join(30)
        assert time.monotonic() - began < 5 and not self.waiting.is_set() and not self.refused


def test_an_outage_is_waited_for(where: SqlSettings, postgresql: PostgreSQL) -> None:
    out = Waited(where)
    out.writer.write([predictions(0, 5)])
    for first, down in ((5, postgresql.stop), (10, postgresql.kill)):
        down()
        try:
            with out.writing(first, 5):
                time.sleep(2)
                postgresql.start()
        finally:
            postgresql.start()
    assert read_rows(where).to_pylist() == by_key(predictions(0, 15))


def test_a_server_that_hangs_is_given_up_and_waited_for(where: SqlSettings, postgresql: PostgreSQL) -> None:
    """Its kernel acknowledges all that is sent, so nothing but our own limit ends the call."""
    out = Waited(where)
    out.writer.write([predictions(0, 5)])
    postgresql.pause()
    try:
        with out.writing(5, 5):
            time.sleep(4)  # the attempts to connect again meet the same silence
            postgresql.resume()
    finally:
        postgresql.resume()
    assert read_rows(where).to_pylist() == by_key(predictions(0, 10))


def test_a_lock_is_waited_for(where: SqlSettings) -> None:
    out = Waited(where)
    lock = locked(where)
    with out.writing(0, 5):
        lock.close()
    assert read_rows(where).num_rows == 5


def test_a_server_that_is_not_there_yet_is_waited_for_at_the_start(where: SqlSettings, postgresql: PostgreSQL) -> None:
    postgresql.stop()
    helper = threading.Timer(1.0, postgresql.start)
    helper.start()
    try:
        table(where, seconds=30.0).prepare()
    finally:
        helper.join()
    assert read_rows(where).num_rows == 0


def test_errors_that_pass_lose_no_row_and_refuse_none(where: SqlSettings) -> None:
    """A trigger that fails by chance, each time with another state."""
    out = writer(where, seconds=60.0)
    states = ("40001", "40P01", "53100", "53200", "57014", "57P01", "55P03", "25006", "58030")
    query(
        where,
        "CREATE FUNCTION chance() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE states text[] := "
        f"ARRAY[{', '.join(map(repr, states))}]; BEGIN IF random() < 0.02 THEN RAISE EXCEPTION 'by chance' "
        f"USING ERRCODE = states[1 + floor(random() * {len(states)})]; END IF; RETURN NEW; END $$",
    )
    query(where, "CREATE TRIGGER chance BEFORE INSERT ON predictions FOR EACH ROW EXECUTE FUNCTION chance()")
    for n in range(20):
        assert out.write([predictions(20 * n, 20)]) == []
    assert read_rows(where).to_pylist() == by_key(predictions(0, 400))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        ("DROP TABLE predictions CASCADE", 'relation "predictions" does not exist'),
        ("ALTER TABLE predictions DROP COLUMN unit", 'column "unit" of relation "predictions" does not exist'),
        ("ALTER TABLE predictions DROP CONSTRAINT predictions_pkey", "no unique or exclusion constraint matching"),
        ("REVOKE INSERT ON predictions FROM mill", "permission denied for table predictions"),
    ],
)
def test_what_no_row_is_to_blame_for_gives_no_row_up(where: SqlSettings, break_it: str, message: str) -> None:
    table(where).prepare()
    mine = as_mill(where)
    out = writer(mine)  # it may not make tables, but need not: there is one
    query(where, break_it)
    with pytest.raises(SqlError, match=message) as raised:
        out.write([predictions(0, 5)])
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{mine.place}: table predictions: ERROR: ")


def as_mill(where: SqlSettings, password: str = "secret") -> SqlSettings:
    """The same database for a user who may use the table and nothing else."""
    if not query(where, "SELECT 1 FROM pg_roles WHERE rolname = 'mill'"):
        query(where, "CREATE ROLE mill LOGIN")
    query(where, f"ALTER ROLE mill PASSWORD '{password.replace(chr(39), 2 * chr(39))}'")
    query(where, "GRANT SELECT, INSERT, UPDATE ON predictions TO mill")
    query(where, "GRANT SELECT ON voltmill_schema TO mill")
    server = where.server
    url = f"postgresql://mill:{password}@{server.host}:{server.port}/{server.database}"
    return msgspec.structs.replace(where, url=url)


def test_each_error_of_the_server_has_its_class(where: SqlSettings) -> None:
    table(where).prepare()
    database = PostgresqlDatabase(where, "predictions", PREDICTION, PREDICTION_KEY)
    connection = connect(where)
    connection.execute("CREATE TABLE t (a integer PRIMARY KEY CHECK (a < 9), b real, c text)")
    connection.execute("CREATE VIEW v AS SELECT * FROM t WHERE a > 0 WITH CHECK OPTION")

    def failed(text: str) -> Failure:
        with pytest.raises(Exception, match=r"\[") as raised:
            connection.execute(text)
        assert sql_odbc.state(raised.value)
        return database.classify(raised.value)

    assert failed("INSERT INTO t VALUES (9)") is Failure.REFUSED
    assert failed("INSERT INTO t VALUES (NULL)") is Failure.REFUSED
    assert failed("INSERT INTO t VALUES (1), (1)") is Failure.REFUSED
    assert failed("INSERT INTO v VALUES (0)") is Failure.REFUSED
    assert failed("INSERT INTO t VALUES (99999999999)") is Failure.REFUSED
    assert failed("INSERT INTO t VALUES (1, '1e99')") is Failure.REFUSED
    assert failed("""INSERT INTO t SELECT 1, 1, '{"x": "\\u0000"}'::json->>'x'""") is Failure.REFUSED
    assert failed("CREATE INDEX ON t (c); INSERT INTO t SELECT 1, 1, string_agg(md5(n::text), '') FROM "
                  "generate_series(1, 999) n") is Failure.REFUSED  # fmt: skip
    assert failed("DO $$ BEGIN ASSERT false; END $$") is Failure.REFUSED
    assert failed("SET statement_timeout = 50; SELECT pg_sleep(9)") is Failure.TRANSIENT
    connection.execute("SET statement_timeout = 0")
    connection.execute("SET default_transaction_read_only = on")
    assert failed("INSERT INTO t VALUES (1)") is Failure.TRANSIENT  # a server that is being replaced
    connection.execute("SET default_transaction_read_only = off")
    for text in (
        "INSERT INTO gone VALUES (1)",
        "INSERT INTO t (z) VALUES (1)",
        "SELEC",
        "INSERT INTO t VALUES ('1'::json)",
    ):
        assert failed(text) is Failure.FATAL
    assert failed("SELECT pg_terminate_backend(pg_backend_pid())") is Failure.TRANSIENT
    assert failed("SELECT 1") is Failure.TRANSIENT
    assert database.classify(TypeError("a bug")) is Failure.FATAL


def test_what_a_text_cannot_hold_is_refused(where: SqlSettings) -> None:
    out = writer(where)
    (refused,) = out.write([predictions(0, 5), predictions(5, 1, unit="a\0b"), predictions(6, 5)])
    assert refused.row.column("source_offset")[0].as_py() == 5
    assert refused.message.startswith("ERROR: unsupported Unicode escape sequence DETAIL: \\u0000 cannot be")
    long = "x" * 20_000  # longer than what the driver takes for a text's length
    assert out.write([predictions(11, 1, unit=long)]) == []
    assert read_rows(where).num_rows == 11 and long in read_rows(where)["unit"].to_pylist()


@pytest.mark.slow
def test_kill_9_of_the_writer_leaves_each_prediction_once(where: SqlSettings, tmp_path: Path) -> None:
    rows, kills = 1_600, 0
    command = [sys.executable, stored_flow.__file__, str(tmp_path), str(rows), where.url, where.driver]
    choose = random.Random(8)
    table(where).prepare()
    for wanted in (100, 1200):
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        more = wanted + choose.randrange(200)
        while child.poll() is None and query(where, "SELECT count(*) FROM predictions")[0][0] < more:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    assert kills >= 2
    assert read_rows(where).to_pylist() == by_key(predictions(0, rows))


def many(first: int, rows: int) -> pa.RecordBatch:
    """Predictions of a thousand modules, one each 5 s."""
    numbers = np.arange(first, first + rows)
    pattern = predictions(0, 1).take([0] * rows)
    made = {
        "device_id": pa.array([f"site-1/gateway-{n % 10}/pack-{n % 100 // 10}/module-{n % 1000:03}" for n in numbers]),
        "event_time": pa.array(numbers // 1000 * 5_000_000 + 1_795_348_800_000_000).cast(PREDICTION.field(1).type),
        "value": pa.array((numbers % 100).astype(np.float32)),
        "source_offset": pa.array(numbers),
    }
    return pa.RecordBatch.from_arrays([made.get(n, pattern.column(n)) for n in PREDICTION.names], schema=PREDICTION)


def test_ten_thousand_predictions_a_second_on_one_worker(where: SqlSettings) -> None:
    """Judged by processor time, ours and the server's together, as if they shared one core: other work is about."""
    out = writer(where)
    out.write([many(0, 1000)])
    database: Any = out._database
    server = psutil.Process(int(database.rows("SELECT pg_backend_pid()")[0][0]))

    def spent() -> tuple[float, float]:
        times = server.cpu_times()
        return time.process_time(), times.user + times.system

    batches = [many(first, 2000) for first in range(1000, 41_000, 2000)]
    before, began = spent(), time.perf_counter()
    for batch in batches:
        assert out.write([batch]) == []
    ours, theirs = (after - start for after, start in zip(spent(), before, strict=True))
    wall = time.perf_counter() - began
    print(f"40,000 predictions in {wall:.1f} s; processor: ours {ours:.2f} s, the server's {theirs:.2f} s")
    assert read_rows(where).num_rows == 41_000
    assert 40_000 / (ours + theirs) > 10_000


def test_two_writers_of_the_same_keys(where: SqlSettings) -> None:
    """The rows come in opposite orders; sorted by key, neither waits for the other for good."""
    batch = predictions(0, 300)
    orders = [batch, batch.take(list(range(299, -1, -1)))]
    errors: list[BaseException] = []

    def write(out: Writer, which: int) -> None:
        try:
            for _ in range(20):
                assert out.write([orders[which]]) == []
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[writer(where), which]) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert read_rows(where).to_pylist() == by_key(batch)


def test_the_victim_of_a_deadlock_tries_again(where: SqlSettings) -> None:
    where = msgspec.structs.replace(where, timeout_seconds=20.0)
    out = Waited(where)
    out.writer.write([predictions(0, 10)])
    other = connect(where)
    other.execute("SET deadlock_timeout = '60s'")  # so the server finds it when our writer looks, and ends ours
    other.execute("BEGIN")
    change = "UPDATE predictions SET value = 7 WHERE source_offset = {}"
    last, first = (max if late else min for late in (1, 0))
    keys = [row["source_offset"] for row in by_key(predictions(0, 10))]
    other.execute(change.format(last(keys, key=keys.index)))
    work = threading.Thread(target=out.writer.write, args=[[predictions(0, 10)]])
    work.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not query(where, waits)[0][0]:
        time.sleep(0.01)
    other.execute(change.format(first(keys, key=keys.index)))  # goes through once our writer has given in
    other.execute("COMMIT")
    other.close()
    work.join(30)
    assert not out.refused
    assert read_rows(where).to_pylist() == by_key(predictions(0, 10))


def test_the_password_is_never_shown(
    where: SqlSettings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    table(where).prepare()
    word = """s3cret '"\\ %41 {};}@:/?#&=+,$~`^|<>é"""
    mine = as_mill(where, word)
    out = writer(mine)
    assert out.write([predictions(0, 5)]) == []  # taken literally, whatever stands in it
    out.close()
    query(where, "ALTER ROLE mill PASSWORD 'another'")
    said = [repr(mine), str(mine), repr(mine.server), mine.place, repr(out), repr(out.__dict__)]
    began = time.monotonic()
    for work in (table(mine, seconds=60.0).prepare, lambda: out.write([predictions(0, 5)]), lambda: read_rows(mine)):
        with pytest.raises(SqlError, match='password authentication failed for user "mill"') as raised:
            work()
        said.append(str(raised.value))
    assert time.monotonic() - began < 10  # it is not waited for
    reject(where, "NEW.unit <> ''")
    query(where, f"ALTER ROLE mill PASSWORD '{word.replace(chr(39), 2 * chr(39))}'")
    query(where, "CREATE OR REPLACE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                 f"RAISE EXCEPTION USING MESSAGE = $x${word}$x$; END $$")  # fmt: skip
    said += [one.message for one in out.write([predictions(0, 1)])]
    said += [caplog.text, *capfd.readouterr()]
    assert len(said) > 10 and not [text for text in said if "s3cret" in text]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": "nobody"}, "password authentication failed"),
        ({"options": "?sslmode=require"}, "server does not support SSL"),
        ({"options": "?colour=red"}, "invalid connection option"),
    ],
)
def test_what_does_not_pass_is_not_waited_for(where: SqlSettings, change: dict[str, str], message: str) -> None:
    parts = {"user": where.server.user, "database": where.server.database, "options": ""} | change
    url = "postgresql://{user}:" + where.server.password + f"@127.0.0.1:{where.server.port}" + "/{database}{options}"
    wrong = msgspec.structs.replace(where, url=url.format(**parts))
    began = time.monotonic()
    with pytest.raises(SqlError, match=message):
        table(wrong, seconds=60.0).prepare()
    assert time.monotonic() - began < 10


def test_a_server_that_never_comes_ends_the_wait_with_its_name(where: SqlSettings) -> None:
    wrong = msgspec.structs.replace(where, url="postgresql://u:s3cret@127.0.0.1:1/db")
    with pytest.raises(SqlError, match=r"^postgresql://127\.0\.0\.1:1/db: table predictions: connection to server"):
        table(wrong, seconds=0.2).prepare()


def test_a_driver_that_is_missing_is_named_with_the_mend(where: SqlSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = msgspec.structs.replace(where, driver="/no/such.so")
    with pytest.raises(SqlError, match=r"Can't open lib '/no/such.so' : file not found; apt-get install odbc-postgres"):
        table(wrong).prepare()
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("libodbc.so.2")))
    with pytest.raises(SqlError, match=r"needs unixODBC: apt-get install unixodbc \(libodbc.so.2\)"):
        table(where).prepare()


def test_the_table_is_fit_for_reports_and_checked(where: SqlSettings) -> None:
    made = [threading.Thread(target=table(where).prepare) for _ in range(4)]  # several processes start at once
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    types = dict(
        query(where, "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'predictions'")
    )
    assert types["event_time"] == "timestamp with time zone" and types["value"] == "real" and types["unit"] == "text"
    query(where, "ALTER TABLE predictions ADD COLUMN note text")  # what others add is theirs
    table(where).prepare()
    query(where, "ALTER TABLE predictions DROP COLUMN value CASCADE, ADD COLUMN value double precision")
    with pytest.raises(SqlError, match="other columns: value is double precision, not real; rename it"):
        table(where).prepare()


def test_the_servers_own_ways_do_not_matter(where: SqlSettings) -> None:
    for setting in (
        "timezone = 'XXX+5:45'",
        "datestyle = 'SQL, DMY'",
        "synchronous_commit = off",
        "extra_float_digits = -3",
    ):
        query(where, f"ALTER DATABASE {where.server.database} SET {setting}")
    out = writer(where)
    out.write([predictions(0, 50)])
    assert read_rows(where).to_pylist() == by_key(predictions(0, 50))
    database: Any = out._database
    assert database._session.execute("SHOW synchronous_commit").fetchval() == "on"


def test_tls_with_the_servers_certificate(certificates: Certificates, postgresql: PostgreSQL) -> None:
    where = on(postgresql)
    for name, file in (("server.crt", certificates.server_cert), ("server.key", certificates.server_key)):
        postgresql.give(Path(file), name)
    query(where, "ALTER SYSTEM SET ssl = on")
    query(where, "SELECT pg_reload_conf()")
    try:
        server = where.server
        for host, ca, message in (
            ("localhost", certificates.ca_file, ""),
            ("127.0.0.1", certificates.ca_file, "certificate"),
            ("localhost", certificates.client_cert, "certificate"),
        ):
            url = f"postgresql://{server.user}:{server.password}@{host}:{server.port}/{server.database}"
            tls = msgspec.structs.replace(where, url=f"{url}?sslmode=verify-full&sslrootcert={ca}")
            if message:
                with pytest.raises(SqlError, match=message):
                    table(tls, seconds=60.0).prepare()
                continue
            out = writer(tls)
            assert out.write([predictions(0, 5)]) == []
            database: Any = out._database
            used = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert database._session.execute(used).fetchval() in (True, "1")
            out.close()
    finally:
        query(where, "ALTER SYSTEM RESET ssl")
        query(where, "SELECT pg_reload_conf()")
