"""Dead letters: their ids, counting, showing, and choosing those that are sent off again, each once."""

import io
import json
import shlex
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from payloads import canonical
from spool_files import NOON, in_lake, letters, spool
from sql_tables import table
from stored_flow import predictions

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.letters import NEVER, Index, letter_ids, read_letters
from voltmill.connectors.sql import SqlSettings, read_rows
from voltmill.connectors.sql_rows import dead_letters
from voltmill.connectors.sql_writer import Refused
from voltmill.flows import cli
from voltmill.flows import redrive as redrive_module
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.dead_letters import DeadLetters, Filter
from voltmill.flows.redrive import redrive
from voltmill.kernels.schema import PREDICTION
from voltmill.operators.sample import DecodeSettings

DECODE = Filter(stage="decode")
SQL = Filter(stage="sql")
COMPACT = b'{"id": "gw/7", "t": 1795341605, "i": -1500, "c": [3601], "T": [250]}'


def compact(n: int, **change: Any) -> bytes:
    """A message of the shipped dialect, which the default configuration refuses."""
    return json.dumps(json.loads(COMPACT) | {"t": 1795341605 + n} | change).encode()


def config(folder: Path, mapping: str = "canonical", **change: Any) -> Config:
    settings = {"lake": LakeSettings(url=str(folder)), "decode": DecodeSettings(mapping=mapping)}
    settings["sql"] = SqlSettings(url=f"sqlite:///{folder}/db.sqlite")
    return Config(**(settings | change))


def spooled(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "redrive").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


class TestIds:
    def test_they_follow_from_what_the_letter_says_and_not_from_where_it_came(self) -> None:
        one = letter_ids(letters([b"a", b"b"]))
        assert letter_ids(letters([b"a", b"b"], 70, ingest_time=None, reason="bad_time", detail="x")) == one
        assert len(set(one)) == 2

    @pytest.mark.parametrize("change", [{"topic": "site/gw-2"}, {"topic": None}, {"stage": "sql"}])
    def test_another_topic_or_stage_is_another_letter(self, change: dict[str, Any]) -> None:
        assert letter_ids(letters([b"a"], **change)) != letter_ids(letters([b"a"]))

    def test_without_payload_and_after_a_redrive_the_place_counts(self) -> None:
        for change in ({"source": "redrive"}, {"stage": "estimate"}):
            payload = b"a" if "source" in change else None
            first, second = letters([payload, payload], **change), letters([payload], 1, **change)
            ids = letter_ids(first)
            assert len(set(ids)) == 2 and letter_ids(second) == ids[1:]
            assert letter_ids(letters([payload], source_partition="other", **change)) != ids[:1]

    def test_an_index_of_many(self) -> None:
        index = Index()
        ids = letter_ids(letters([b"%d" % n for n in range(1000)]))
        for _ in range(70):  # beyond what it holds unsorted
            index.add(ids[:500], 5)
            index.add((f"{n:020d}" for n in range(1000)), 7)
        found = index.find(ids)
        assert set(found[:500].tolist()) == {5} and set(found[500:].tolist()) == {NEVER}

    def test_sorted_and_unsorted_parts_of_an_index(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("voltmill.connectors.letters._PENDING", 64)
        index = Index()
        for n in range(1000):
            index.add([f"{n * 7919 % 1000:020d}"], n)
        times = index.find([f"{n * 7919 % 1000:020d}" for n in range(1000)])
        assert times.tolist() == list(range(1000)) and len(index) == 1000
        assert index.find([f"{1000 + n:020d}" for n in range(50)]).tolist() == [NEVER] * 50


class TestReading:
    def test_no_table_and_no_letters(self, tmp_path: Path) -> None:
        LakeSettings(url=str(tmp_path)).open().make()
        assert list(read_letters(LakeSettings(url=str(tmp_path)))) == []
        assert DeadLetters(config(tmp_path)).groups(Filter()) == {}

    def test_groups(self, tmp_path: Path) -> None:
        hour = timedelta(hours=1)
        in_lake(
            tmp_path,
            [
                letters([b"a", b"b"], ingest_time=NOON - hour),
                letters([b"c"], 2),
                letters([b"d"], topic=None, reason="bad_time"),
                letters([None], stage="estimate", reason="model_failed", topic=None, ingest_time=None),
            ],
        )
        groups = DeadLetters(config(tmp_path)).groups(Filter())
        key = ("decode", "missing_key", "site/gw", "site/#")
        assert next(iter(groups)) == key
        assert [(g.letters, g.redriven) for g in groups.values()] == [(3, 0), (1, 0), (1, 0)]
        assert (groups[key].first, groups[key].last) == (micros(NOON - hour), micros(NOON))
        assert groups["estimate", "model_failed", None, "site/#"].first is None

    @pytest.mark.parametrize(
        ("wanted", "payloads"),
        [
            (Filter(), "abcdef"),
            (Filter(stage="sql"), "e"),
            (Filter(reason="bad_time"), "c"),
            (Filter(topic="site/+"), "abce"),
            (Filter(topic="site/gw"), "abce"),
            (Filter(topic="other/#"), "d"),
            (Filter(topic="#"), "abcde"),
            (Filter(start=NOON), "abcde"),
            (Filter(start=NOON + timedelta(seconds=1)), "b"),
            (Filter(stop=NOON + timedelta(seconds=1)), "acde"),
            (Filter(reason="missing_key", topic="site/#", stop=NOON), ""),
        ],
    )
    def test_filters(self, tmp_path: Path, wanted: Filter, payloads: str) -> None:
        parts = [{}, {"ingest_time": NOON + timedelta(minutes=1)}, {"reason": "bad_time"}, {"topic": "other/x"}]
        parts += [{"stage": "sql"}, {"topic": None, "ingest_time": None}]
        in_lake(tmp_path, [letters([p.encode()], **c) for p, c in zip("abcdef", parts, strict=True)])
        found = DeadLetters(config(tmp_path)).read(wanted)
        assert "".join(p.decode() for f in found for p in f.rows["payload"].to_pylist()) == payloads

    def test_find(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([b"a", b"b", b"c"])])
        wanted = letter_ids(letters([b"b"]))[0]
        letter, redriven = DeadLetters(config(tmp_path)).find(wanted)
        assert letter["payload"] == b"b" and letter["source_offset"] == 1 and redriven == NEVER
        with pytest.raises(ConfigError, match="there is no dead letter 0123"):
            DeadLetters(config(tmp_path)).find("0123")


def micros(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000)


class TestRedrive:
    def test_what_decodes_now_is_sent_off_and_the_rest_stays(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([compact(0), b"what?", compact(1)]), letters([compact(2, c=[])], 3)])
        assert redrive(config(tmp_path), DECODE).chosen == 0
        assert not (tmp_path / "redrive").exists()
        done = redrive(config(tmp_path, "compact"), DECODE)
        assert (done.chosen, done.before, done.files) == (2, 0, ["redrive/0000000000.parquet"])
        assert done.refused == Counter(malformed_json=1, cell_count=1)
        rows = spooled(tmp_path)
        assert [row["payload"] for row in rows] == [compact(0), compact(1)]
        assert [row["letter_id"] for row in rows] == letter_ids(letters([compact(0), compact(1)]))
        assert [(row["source"], row["source_partition"], row["source_offset"]) for row in rows] == [
            ("mqtt", "site/#", 0),
            ("mqtt", "site/#", 2),
        ]
        assert {(row["topic"], row["ingest_time"]) for row in rows} == {("site/gw", NOON)}

    def test_once(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([compact(n) for n in range(5)])])
        mended = config(tmp_path, "compact")
        assert redrive(mended, DECODE, limit=2).chosen == 2
        again = redrive(mended, DECODE)
        assert (again.chosen, again.before) == (3, 2)
        assert (redrive(mended, DECODE).chosen, redrive(mended, DECODE).before) == (0, 5)
        assert [row["payload"] for row in spooled(tmp_path)] == [compact(n) for n in range(5)]
        assert sum(group.redriven for group in DeadLetters(mended).groups(Filter()).values()) == 5

    def test_equal_letters_are_one(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([compact(0), compact(0), compact(1)]), letters([compact(1)], 3)])
        in_lake(tmp_path, [letters([compact(0)], 99)], store="t")
        done = redrive(config(tmp_path, "compact"), DECODE)
        assert (done.chosen, done.before) == (2, 3)

    def test_a_letter_of_several_samples_of_which_one_is_refused_still(self, tmp_path: Path) -> None:
        both = b"[" + compact(0) + b", " + compact(1, c="?") + b"]"
        in_lake(tmp_path, [letters([both])])
        assert redrive(config(tmp_path, "compact"), DECODE).chosen == 1

    def test_dry_run_writes_nothing(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([compact(0), b"?"])])
        plan = redrive(config(tmp_path, "compact"), DECODE, dry_run=True)
        assert (plan.chosen, plan.refused.total(), plan.files) == (1, 1, [])
        assert not (tmp_path / "redrive").exists()

    def test_by_filter_and_by_id(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([compact(0), compact(1)]), letters([compact(2)], topic="other/x")])
        mended = config(tmp_path, "compact")
        assert redrive(mended, Filter(stage="decode", topic="other/#")).chosen == 1
        (id_,) = letter_ids(letters([compact(1)]))
        assert redrive(mended, Filter(stage="decode", ids=frozenset({id_}))).chosen == 1
        assert [row["payload"] for row in spooled(tmp_path)] == [compact(2), compact(1)]
        with pytest.raises(ConfigError, match="there is no dead letter aa of stage decode"):
            redrive(mended, Filter(stage="decode", ids=frozenset({id_, "aa"})))

    def test_the_limit_is_kept_whatever_lies_between(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([b"?" * (n + 1), compact(n)], 2 * n) for n in range(50)])
        assert redrive(config(tmp_path, "compact"), DECODE, limit=7).chosen == 7
        assert [row["payload"] for row in spooled(tmp_path)] == [compact(n) for n in range(7)]

    def test_estimate_has_nothing_to_redrive(self, tmp_path: Path) -> None:
        LakeSettings(url=str(tmp_path)).open().make()
        with pytest.raises(ConfigError, match="voltmill replay"):
            redrive(config(tmp_path), Filter(stage="estimate"))

    def test_concurrent_calls_send_each_letter_off_once(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([compact(n) for n in range(3000)])])
        outcomes, gate = [], threading.Barrier(4)

        def call(limit: int) -> None:
            gate.wait()
            outcomes.append(redrive(config(tmp_path, "compact"), DECODE, limit=limit))

        threads = [threading.Thread(target=call, args=(limit,)) for limit in (0, 0, 1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(row["payload"] for row in spooled(tmp_path)) == sorted(compact(n) for n in range(3000))
        assert sum(done.chosen for done in outcomes) == 3000

    def test_a_call_that_finds_its_number_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        in_lake(tmp_path, [letters([compact(n) for n in range(10)])])
        mended, real, calls = config(tmp_path, "compact"), type(spool(tmp_path)).add, []

        def add(self: Any, data: pa.Buffer, number: int) -> bool:
            if not calls:
                calls.append(number)
                assert redrive(mended, DECODE, limit=4).chosen == 4
            return real(self, data, number)

        monkeypatch.setattr("voltmill.connectors.spool.Spool.add", add)
        done = redrive(mended, DECODE)
        assert (done.chosen, done.before, done.files) == (6, 4, ["redrive/0000000001.parquet"])
        assert [row["payload"] for row in spooled(tmp_path)] == [compact(n) for n in range(10)]

    def test_very_many_go_into_several_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        in_lake(tmp_path, [letters([compact(n) for n in range(10_000)])])
        monkeypatch.setattr(redrive_module, "_FILE_BYTES", 20_000)
        done = redrive(config(tmp_path, "compact"), DECODE)
        assert done.chosen == 10_000 and len(done.files) > 2
        assert [row["payload"] for row in spooled(tmp_path)] == [compact(n) for n in range(10_000)]

    def test_the_spool_says_what_waits(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [letters([compact(0)])])
        redrive(config(tmp_path, "compact"), DECODE)
        waiting = DeadLetters(config(tmp_path)).waiting()
        assert (waiting.letters, waiting.files) == (1, ["0000000000"])


class TestSql:
    def refused(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return dead_letters([Refused(rows.slice(k, 1), "no") for k in range(rows.num_rows)], "predictions")

    def test_rows_are_stored_and_then_said_to_be(self, tmp_path: Path) -> None:
        rows = predictions(0, 30)
        in_lake(tmp_path, [self.refused(rows)])
        done = redrive(config(tmp_path), SQL)
        assert (done.chosen, done.refused.total()) == (30, 0)
        stored = read_rows(config(tmp_path).sql).to_pylist()
        key = lambda row: (row["event_time"], row["device_id"])  # noqa: E731
        assert sorted(stored, key=key) == sorted(rows.to_pylist(), key=key)
        assert (redrive(config(tmp_path), SQL).chosen, redrive(config(tmp_path), SQL).before) == (0, 30)
        assert DeadLetters(config(tmp_path)).waiting().files == []

    def test_what_is_refused_again_stays(self, tmp_path: Path) -> None:
        rows, settings = predictions(0, 30), config(tmp_path)
        in_lake(tmp_path, [self.refused(rows), letters([b"{}", b"?"], stage="sql")])
        redrive(settings, SQL, limit=1)
        with sqlite3.connect(tmp_path / "db.sqlite") as db:
            db.execute(
                "CREATE TRIGGER no BEFORE INSERT ON predictions_rows WHEN new.source_offset % 10 = 5 "
                "BEGIN SELECT RAISE(ABORT, 'not that one'); END"
            )
        done = redrive(settings, SQL)
        assert (done.chosen, done.before, done.refused.total()) == (26, 1, 5)
        assert done.refused["not_a_prediction"] == 2 and any("not that one" in why for why in done.refused)
        with sqlite3.connect(tmp_path / "db.sqlite") as db:
            db.execute("DROP TRIGGER no")
        assert redrive(settings, SQL).chosen == 3
        assert read_rows(settings.sql).num_rows == 30

    def test_a_dry_run_stores_nothing(self, tmp_path: Path) -> None:
        in_lake(tmp_path, [self.refused(predictions(0, 3))])
        assert redrive(config(tmp_path), SQL, dry_run=True).chosen == 3
        assert not (tmp_path / "db.sqlite").exists()

    def test_numbers_come_through_to_the_bit(self, tmp_path: Path) -> None:
        value = [3.3333333, float("nan"), 1e-38, -0.0, None]
        rows = predictions(0, 5)
        rows = rows.set_column(4, PREDICTION.field("value"), pa.array(value, pa.float32()))
        in_lake(tmp_path, [self.refused(rows)])
        redrive(config(tmp_path), SQL)
        stored = read_rows(config(tmp_path).sql).sort_by("event_time")["value"].to_pylist()
        assert stored == [rows["value"][0].as_py(), None, rows["value"][2].as_py(), 0.0, None]


Call = Callable[..., tuple[int, str, str]]


class TestCommands:
    @pytest.fixture
    def call(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
        (tmp_path / "old.toml").write_text(f'[lake]\nurl = "{tmp_path}"\n[sql]\nurl = "sqlite:///{tmp_path}/db"\n')
        (tmp_path / "new.toml").write_text((tmp_path / "old.toml").read_text() + '[decode]\nmapping = "compact"\n')

        def run(*arguments: object, config: str = "new") -> tuple[int, str, str]:
            with pytest.raises(SystemExit) as ended:
                cli.main(["dead-letters", *map(str, arguments), "-c", str(tmp_path / f"{config}.toml")])
            found = capsys.readouterr()
            return ended.value.code or 0, found.out, found.err  # type: ignore[return-value]

        return run

    @pytest.fixture
    def three(self, tmp_path: Path) -> list[str]:
        """Two letters that the new configuration reads, and one that is no text; their ids."""
        batch = letters([compact(0), compact(1), b"\xff\x00what?\x1b[2J"])
        in_lake(tmp_path, [batch])
        return letter_ids(batch)

    def test_list(self, call: Call, three: list[str]) -> None:
        status, out, err = call("list")
        assert (status, err) == (0, "")
        head, row = out.splitlines()
        assert head.split() == ["stage", "reason", "letters", "redriven", "first", "last", "redriven", "at", "from"]
        assert row.split() == "decode missing_key 3 0 2026-11-22 12:00:00 2026-11-22 12:00:00 site/gw".split()
        assert call("list", "--reason", "bad_time") == (0, "no dead letters\n", "")

    def test_list_for_machines(self, call: Call, three: list[str]) -> None:
        (group,) = [json.loads(line) for line in call("list", "--json")[1].splitlines()]
        assert group == {
            "stage": "decode",
            "reason": "missing_key",
            "topic": "site/gw",
            "source_partition": "site/#",
            "letters": 3,
            "redriven": 0,
            "first": "2026-11-22T12:00:00Z",
            "last": "2026-11-22T12:00:00Z",
            "redriven_at": None,
        }
        found = [json.loads(line) for line in call("list", "--all", "--json")[1].splitlines()]
        assert [row["id"] for row in found] == three and found[0]["bytes"] == len(compact(0))

    def test_list_says_what_was_redriven_and_what_waits(self, call: Call, three: list[str]) -> None:
        assert call("redrive", "--limit", 1, "-y")[0] == 0
        *rows, waiting = call("list", "--all")[1].splitlines()
        assert [row.split()[0] for row in rows[1:]] == three
        found = [json.loads(line)["redriven_at"] for line in call("list", "--all", "--json")[1].splitlines()]
        assert found[0] is not None and found[1:] == [None, None]
        assert waiting == "1 redriven letters wait for a live flow, in 0000000000"

    def test_list_is_cut_off(self, call: Call, three: list[str]) -> None:
        assert call("list", "--all", "--limit", 1)[1].splitlines()[-1] == "... and 2 more: --limit 0 shows all"
        assert len(call("list", "--all", "--limit", 0)[1].splitlines()) == 4

    def test_show(self, call: Call, three: list[str]) -> None:
        lines = call("show", three[0])[1].splitlines()
        assert lines[0].split() == ["id", three[0]] and lines[3].split(None, 1) == ["detail", "there is none"]
        assert f"    {compact(0).decode()}" in lines
        assert 'now         a sample: {"device_id":"gw/7"' in lines[-1] and '"current_ampere":-1.5' in lines[-1]
        refused = call("show", three[0], config="old")[1].splitlines()[-1]
        assert refused.startswith("now         refused: missing_key: ")

    def test_show_never_sends_what_a_message_says_to_the_terminal(self, call: Call, three: list[str]) -> None:
        out = call("show", three[2])[1]
        assert "00000000  ff 00 77 68 61 74 3f 1b 5b 32 4a                 ..what?.[2J" in out
        assert "\x1b" not in out and "refused: not_utf8" in out

    def test_show_one_that_is_not_there(self, call: Call, three: list[str]) -> None:
        status, out, err = call("show", "abc")
        assert (status, out) == (2, "") and err.startswith("voltmill: there is no dead letter abc in ")

    def test_redrive_asks_first(
        self, call: Call, three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = "2 letters can be taken\n1 letter cannot, and stay: 1 not_utf8\n"
        assert call("redrive", "--dry-run") == (0, plan, "")
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        status, out, _ = call("redrive")
        assert status == 1 and out.startswith(plan) and not (tmp_path / "redrive").exists()
        status, out, err = call("redrive", "-y")
        assert (status, err) == (0, "")
        assert out.splitlines()[0] == (
            "2 letters sent off in redrive/0000000000.parquet: a live flow takes them within 5 s"
        )
        out = call("redrive")[1]
        assert out.splitlines() == [
            "0 letters can be taken",
            "1 letter cannot, and stay: 1 not_utf8",
            "2 letters left out: redriven before, or equal to one that is",
        ]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["redrive", "--stage", "estimate"],
            ["redrive", "abc", "-y"],
            ["list", "--from", "yesterday"],
            ["list", "--from", "2026-01-02", "--to", "2026-01-01"],
        ],
    )
    def test_wrong_calls_are_one_line(self, call: Call, three: list[str], arguments: list[str]) -> None:
        status, out, err = call(*arguments)
        assert status == 2 and out == "" and err.startswith("voltmill: ") and err.count("\n") == 1

    def test_letters_of_the_database(self, call: Call, tmp_path: Path) -> None:
        in_lake(tmp_path, [TestSql().refused(predictions(0, 3))])
        table(SqlSettings(url=f"sqlite:///{tmp_path}/db")).prepare()  # as the flow did that had them refused
        assert call("redrive", "--stage", "sql", "-y") == (0, f"3 letters stored in {tmp_path}/db\n", "")


def test_the_commands_of_the_page_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs/operations.md").read_text()
    section = page.split("## Dead letters")[1].split("```sh\n")[1].split("```")[0]
    lines = [shlex.split(line, comments=True)[1:] for line in section.splitlines()]
    assert len(lines) > 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "live.toml").write_text('[decode]\nmapping = "compact"\n')
    (tmp_path / "voltmill-data").mkdir()
    in_lake(tmp_path / "voltmill-data/lake", [letters([compact(n) for n in range(3)], topic="ev/car1/raw")])
    said = []
    for line in lines:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        with pytest.raises(SystemExit) as ended:
            cli.main(line)
        found = capsys.readouterr()
        assert (ended.value.code or 0, found.err) == (0, "")
        said.append(found.out)
    assert "a sample: " in said[2] and said[3] == "3 letters can be taken\n" and "1 letter sent off" in said[4]
    assert [row["payload"] for row in spooled(tmp_path / "voltmill-data/lake")] == [compact(n) for n in range(3)]


def test_a_canonical_message_that_was_too_large(tmp_path: Path) -> None:
    in_lake(tmp_path, [letters([canonical()], reason="too_large")])
    small = config(tmp_path, decode=DecodeSettings(max_payload_bytes=10))
    assert redrive(small, DECODE).refused == Counter(too_large=1)
    assert redrive(config(tmp_path), DECODE).chosen == 1
    assert msgspec.json.decode(spooled(tmp_path)[0]["payload"])["seq"] == 12345
