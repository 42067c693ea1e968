"""Loading the lake into a dedicated pool: which files, and each row once.

No pool can be reached here. The files are those of a real lake, merged by the real compaction; the pool is
PostgreSQL, in which the statements of ``voltmill_load`` run as sqlglot translates them, and rows are put in for COPY.
"""

import re
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
from servers import PostgreSQL
from sql_tables import on, query, table
from stored_flow import predictions

from voltmill.connectors import synapse
from voltmill.connectors.compact import compact
from voltmill.connectors.compact_settings import CompactSettings
from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_files import LakeFile
from voltmill.connectors.sql import SqlSettings, read_rows
from voltmill.connectors.store import Store
from voltmill.flows.cli import main
from voltmill.kernels.schema import PREDICTION

PROCEDURE = Path(__file__).parent.parent / "deploy/sql/synapse/dedicated/001_tables.sql"
STORE = "20261122T1-a"


class Lake:
    """Twenty rows a file, of one shard."""

    def __init__(self, folder: Path, level: int = 0) -> None:
        self.settings = LakeSettings(url=str(folder), max_file_rows=20, compression_level=level)
        sink = LakeSink(self.settings, table="predictions", schema=PREDICTION, shards=["00"], store=STORE)
        self._part = sink.build_part("sink", "00", None)
        self._rows = 0

    @property
    def store(self) -> Store:
        return self.settings.open()

    def write(self, files: int) -> None:
        for _ in range(files):
            self._part.write_batch([predictions(self._rows, 20)])
            self._rows += 20
            self._part.snapshot()

    def merge(self) -> int:
        settings = CompactSettings(before=date(2030, 1, 1), finished=frozenset({STORE}), compression_level=0)
        return compact(self.store, "predictions", settings).merged

    def rows(self) -> int:
        return self._rows


class Pool:
    """PostgreSQL in the part of the pool."""

    def __init__(self, server: PostgreSQL, lake: Lake) -> None:
        self.where: SqlSettings = on(server)
        self.lake = lake
        self.loads: list[tuple[int, int]] = []
        table(self.where).prepare()
        query(self.where, "DROP SCHEMA IF EXISTS dbo CASCADE")
        query(self.where, "CREATE SCHEMA dbo")
        query(self.where, "CREATE VIEW dbo.predictions AS SELECT * FROM predictions")
        query(self.where, "CREATE TABLE dbo.load_turn (turn bigint)")
        query(
            self.where,
            "CREATE TABLE dbo.loaded_files (store text, shard text, first_number bigint, last_number bigint, "
            "path text, loaded_at timestamp)",
        )
        query(self.where, "CREATE TABLE stage (LIKE predictions INCLUDING INDEXES)")

    def loaded(self) -> list[tuple[object, ...]]:
        return query(self.where, synapse.LOADED)

    def load(self, file: LakeFile, text: str, *, die: bool = False) -> None:
        """What the procedure does; ``die``: before it commits."""
        arguments = dict(re.findall(r"@(\w+) = (N?'[^']*'|\d+)", text))
        assert arguments["url"] == f"N'https://bms.dfs.core.windows.net/lake/predictions/{file.path}'"
        rows = pq.read_table(str(Path(self.lake.settings.url) / "predictions" / file.path))
        query(self.where, "DELETE FROM stage")
        table(self.where, table="stage").writer().write(rows.to_batches())
        statements = ["BEGIN", *self._statements(arguments), "ROLLBACK" if die else "COMMIT"]
        query(self.where, "; ".join(statements))
        self.loads.append((file.first, file.last))

    def _statements(self, arguments: dict[str, str]) -> list[str]:
        inside = PROCEDURE.read_text().split("BEGIN TRANSACTION;")[1].split("COMMIT TRANSACTION;")[0]
        for name, value in arguments.items():
            inside = re.sub(rf"@{name}\b", value, inside)
        inside = inside.replace("#stage", "stage").replace("GETUTCDATE()", "CURRENT_TIMESTAMP")
        return [tree.sql("postgres") for tree in sqlglot.parse(inside, read="tsql") if tree is not None]

    def run(self, *, die_at: int = -1, finished: bool = False) -> int:
        """As ``voltmill db copy`` does; returns how many files it loaded."""
        todo = synapse.to_load(self.lake.store, self.loaded(), frozenset({STORE} if finished else ()))
        for k, (file, text) in enumerate(synapse.calls(todo, "https://bms.dfs.core.windows.net/lake")):
            self.load(file, text, die=k == die_at)
            if k == die_at:
                return k
        return len(todo.files)

    def complete(self) -> bool:
        found = read_rows(self.where)
        return found.num_rows == self.lake.rows() == len(set(found["source_offset"].to_pylist()))


@pytest.fixture
def pool(tmp_path: Path, postgresql: PostgreSQL) -> Pool:
    return Pool(postgresql, Lake(tmp_path / "lake"))


def test_settled_files_are_loaded_once(pool: Pool) -> None:
    pool.lake.write(6)
    todo = synapse.to_load(pool.lake.store, [])
    assert 0 < len(todo.files) < 6 and todo.unsettled == 6 - len(todo.files)
    assert pool.run() == len(todo.files) and pool.run() == 0
    pool.lake.write(2)
    assert pool.run() == 2
    assert pool.run(finished=True) == todo.unsettled
    assert pool.complete() and pool.run(finished=True) == 0


def test_a_load_that_dies_is_done_again(pool: Pool) -> None:
    pool.lake.write(5)
    pool.run(die_at=1)
    assert len(pool.loaded()) == 1
    pool.run(finished=True)
    assert pool.complete() and len(pool.loaded()) == 5


def test_files_that_were_merged_are_not_loaded_again(pool: Pool) -> None:
    pool.lake.write(6)
    pool.run(finished=True)
    assert pool.lake.merge() == 6
    assert pool.run(finished=True) == 0 and pool.complete()


def test_of_a_merged_file_that_was_loaded_in_part_the_rest_is_loaded(pool: Pool) -> None:
    pool.lake.write(6)
    pool.run(die_at=2)
    assert pool.lake.merge() == 6
    assert pool.run(finished=True) == 1 and pool.loads[-1] == (0, 5)
    assert pool.complete() and pool.run(finished=True) == 0


def test_what_is_covered() -> None:
    file = synapse.parse(f"date=2026-11-22/shard=00/{STORE}-0000000005-0000000009.parquet")
    assert file is not None
    for ranges, covered in (
        ([], False),
        ([(5, 9)], True),
        ([(0, 20)], True),
        ([(5, 6), (8, 9)], False),
        ([(8, 9), (5, 5), (6, 7)], True),
        ([(6, 9)], False),
        ([(5, 8)], False),
        ([(4, 7), (6, 9)], True),
    ):
        assert synapse._covered(file, ranges) is covered, ranges


def test_the_files_are_of_the_old_encodings_that_synapse_is_documented_to_read(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.write(3)
    lake.merge()
    (file,) = (tmp_path / "lake").rglob("*.parquet")
    group = pq.read_metadata(file).row_group(0)
    columns = [group.column(k) for k in range(group.num_columns)]
    assert {column.compression for column in columns} == {"SNAPPY"}
    assert {name for column in columns for name in column.encodings} <= {
        "PLAIN",
        "RLE",
        "RLE_DICTIONARY",
        "PLAIN_DICTIONARY",
    }
    assert pq.read_table(file, partitioning=None).cast(pa.schema(PREDICTION)).num_rows == 60


def test_the_command_prints_what_it_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path / "lake")
    lake.write(4)
    file = tmp_path / "f.toml"
    file.write_text(f'[lake]\nurl = "{tmp_path}/lake"\n')
    with pytest.raises(SystemExit) as ended:
        main(["db", "copy", "--dry-run", "-c", str(file)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"voltmill: lake {tmp_path}/lake: Synapse reads a lake in Azure: abfs://")
    monkeypatch.setattr(synapse, "address", lambda url, options: "https://bms.dfs.core.windows.net/fleet")
    with pytest.raises(SystemExit) as ended:
        main(["db", "copy", "--dry-run", "-c", str(file), "--finished", STORE])
    *lines, last = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and len(lines) == 4
    assert last == "-- 4 files to load; 0 files are not settled yet"
    assert all(line.startswith("EXEC dbo.voltmill_load @url = N'https://bms") and line.endswith(";") for line in lines)


def test_an_address_needs_an_account() -> None:
    with pytest.raises(ValueError, match=r"set \[lake\] storage_options.account_name"):
        synapse.address("abfs://fleet/lake", {})
