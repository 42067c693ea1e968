"""The checker of the chaos suite finds what is planted in a finished result: else its zeros would say nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from chaos.checker import CHANGED, DISORDERED, DOUBLED, FOREIGN, LEFT_OVER, LOST, Verdict, as_sql, check
from chaos.ledger import Ledger, write_sendings, write_sent
from chaos.stream import Stream

from voltmill.connectors.sql_rows import dead_letters
from voltmill.connectors.sql_writer import Refused
from voltmill.flows.choice import Models
from voltmill.flows.config import Config
from voltmill.flows.warm_up import raw_batch
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, TELEMETRY, Quality
from voltmill.operators.decode import Decoder
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import FeatureSettings, FeatureState
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.sample import DecodeSettings


@dataclass
class Stored:
    """A finished result that tests spoil."""

    ledger: Path
    lake: Path
    sql: pa.Table

    def file(self, table: str) -> Path:
        return self.lake / table / "date=2026-11-22/shard=00/20261122T103000Z-3fa2-0000000000.parquet"

    def read(self, table: str) -> pa.Table:
        return pq.ParquetFile(self.file(table)).read()

    def write(self, table: str, rows: pa.Table) -> None:
        self.file(table).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, self.file(table))

    def check(self) -> Verdict:
        return check(self.ledger, self.lake, self.sql)


def sent() -> list[tuple[str, bytes]]:
    stream = Stream(7)
    return [message for _ in range(12) for message in stream.tick()]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """What a flow stores of some ticks: the same operators, without the engine."""
    messages = sent()
    (tmp_path / "ledger").mkdir()
    write_sent(tmp_path / "ledger" / "sent-000000.parquet", messages)
    size = len(messages)
    write_sendings(tmp_path / "ledger", np.ones(size, np.uint8), np.ones(size, np.bool_), np.arange(float(size)))
    telemetry, letters = Decoder(DecodeSettings())(raw_batch([payload for _, payload in messages]))
    assert telemetry is not None and letters is not None
    fleet = Fleet([FleetEntry(match="*", cell_type="lg-hg2", capacity_ah=3.0)])
    judged = QualityState(QualitySettings(), fleet).apply(telemetry)
    features = FeatureState(FeatureSettings(), fleet).apply(judged)
    [(_, predictions)] = EstimateState(Models(Config()).of("features"), fleet).apply(features)
    tables = {"telemetry": judged, "dead_letters": letters, "predictions": predictions}
    result = Stored(tmp_path / "ledger", tmp_path / "lake", as_sql(pa.Table.from_batches([predictions])))
    for name, schema in (("telemetry", TELEMETRY), ("dead_letters", DEAD_LETTER), ("predictions", PREDICTION)):
        result.write(name, pa.Table.from_batches([tables[name]], schema))
    return result


def test_a_sound_result_has_no_findings(stored: Stored) -> None:
    verdict = stored.check()
    assert verdict.findings == []
    counts = verdict.counts
    assert counts["messages"] == counts["confirmed"] == len(sent())
    assert counts["archived"] > 2_300 and counts["dead_letters"] > 10
    assert counts["archived"] == counts["samples"] + counts["flagged_duplicate"]
    assert counts["flagged_duplicate"] > 0, "the stream sends some messages twice on purpose"
    assert counts["predictions"] == counts["sql_rows"] == counts["samples"]


def without(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def doubled(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table, table.slice(row, 1)])


def changed(table: pa.Table, row: int, name: str, value: object) -> pa.Table:
    place = table.schema.get_field_index(name)
    values = table.column(name).to_pylist()
    values[row] = value
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def lose(table: str) -> Callable[[Stored], None]:
    return lambda stored: stored.write(table, without(stored.read(table), 5))


def double(table: str) -> Callable[[Stored], None]:
    return lambda stored: stored.write(table, doubled(stored.read(table), 5))


def change(table: str, name: str, value: object) -> Callable[[Stored], None]:
    return lambda stored: stored.write(table, changed(stored.read(table), 5, name, value))


def in_sql(spoil: Callable[[pa.Table], pa.Table]) -> Callable[[Stored], None]:
    def plant(stored: Stored) -> None:
        stored.sql = spoil(stored.sql)

    return plant


def flag_a_copy(stored: Stored) -> None:
    """A row that nobody sent twice comes a second time, with the bit."""
    rows = stored.read("telemetry")
    copy = changed(rows.slice(9, 1), 0, "quality_bits", int(Quality.DUPLICATE))
    stored.write("telemetry", pa.concat_tables([rows, copy]))


def hide(name: str) -> Callable[[Stored], None]:
    def plant(stored: Stored) -> None:
        stored.file("telemetry").with_name(name).write_bytes(b"PAR1 cut off")

    return plant


PLANTED: list[tuple[str, Callable[[Stored], None], str, str]] = [
    ("a lost row", lose("telemetry"), LOST, "telemetry"),
    ("a doubled row", double("telemetry"), DOUBLED, "telemetry"),
    ("a doubled row with the bit", flag_a_copy, DOUBLED, "telemetry, flagged"),
    ("only a copy with the bit", change("telemetry", "quality_bits", int(Quality.DUPLICATE)), LOST, "telemetry"),
    ("a changed value", change("telemetry", "current_ampere", 1.2345), CHANGED, "telemetry"),
    ("a lost value", change("telemetry", "voltage_volt", None), CHANGED, "telemetry"),
    ("a changed cell", change("telemetry", "cell_voltage_volt", [3.6] * 8), CHANGED, "telemetry"),
    ("a lost cell", change("telemetry", "cell_voltage_volt", [3.6] * 7), CHANGED, "telemetry"),
    ("a row of nobody", change("telemetry", "device_id", "site-1/gw-1/pack-1/module-99"), FOREIGN, "telemetry"),
    ("a row out of order", change("telemetry", "quality_bits", int(Quality.OUT_OF_ORDER)), DISORDERED, "telemetry"),
    ("a lost dead letter", lose("dead_letters"), LOST, "dead_letters"),
    ("a doubled dead letter", double("dead_letters"), DOUBLED, "dead_letters"),
    ("a changed dead letter", change("dead_letters", "payload", b"x"), FOREIGN, "dead_letters"),
    ("a letter of the model", change("dead_letters", "stage", "estimate"), FOREIGN, "dead_letters, stage"),
    ("a lost prediction", lose("predictions"), LOST, "predictions"),
    ("a doubled prediction", double("predictions"), DOUBLED, "predictions"),
    ("a row that SQL lost", in_sql(lambda rows: without(rows, 5)), LOST, "sql"),
    ("a row twice in SQL", in_sql(lambda rows: doubled(rows, 5)), DOUBLED, "sql"),
    ("a value changed in SQL", in_sql(lambda rows: changed(rows, 5, "value", 12.5)), CHANGED, "sql"),
    ("a label changed in SQL", in_sql(lambda rows: changed(rows, 5, "mode", "replay")), CHANGED, "sql"),
    ("a hidden file", hide(".x.parquet.tmp"), LEFT_OVER, "lake"),
    ("half a file", hide("20261122T103000Z-3fa2-0000000001.parquet"), LEFT_OVER, "lake, unreadable"),
]


@pytest.mark.parametrize(("plant", "kind", "where"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_it_finds_what_is_planted(stored: Stored, plant: Callable[[Stored], None], kind: str, where: str) -> None:
    plant(stored)
    found = [finding for finding in stored.check().findings if (finding.kind, finding.where) == (kind, where)]
    assert [finding.count for finding in found] == [1]


def refuse(stored: Stored, row: int) -> None:
    """The database refused a row: it became a dead letter."""
    prediction = stored.read("predictions").slice(row, 1).combine_chunks().to_batches()[0]
    letter = dead_letters([Refused(prediction, "no")], "predictions")
    stored.write("dead_letters", pa.concat_tables([stored.read("dead_letters"), pa.Table.from_batches([letter])]))


def test_a_row_that_the_database_refused_is_a_dead_letter_instead(stored: Stored) -> None:
    refuse(stored, 5)
    stored.sql = without(stored.sql, 5)
    verdict = stored.check()
    assert verdict.findings == []
    assert verdict.counts["sql_dead_letters"] == 1 and verdict.counts["in_sql_and_dead_letters"] == 0


def test_a_refused_row_whose_letter_came_twice(stored: Stored) -> None:
    refuse(stored, 5)
    refuse(stored, 5)
    stored.sql = without(stored.sql, 5)
    verdict = stored.check()
    assert [(finding.kind, finding.where, finding.count) for finding in verdict.findings] == [
        (DOUBLED, "sql dead letters", 1)
    ]


def test_a_row_that_was_stored_and_refused_later_is_counted(stored: Stored) -> None:
    """A crash makes the row come again, and by then the database takes no such row: both are true."""
    refuse(stored, 5)
    verdict = stored.check()
    assert verdict.findings == []
    assert verdict.counts["in_sql_and_dead_letters"] == 1


def test_what_was_not_confirmed_may_be_missing(stored: Stored) -> None:
    lose("telemetry")(stored)
    ledger = Ledger.load(stored.ledger)
    gone = [finding.kind for finding in stored.check().findings]
    assert LOST in gone
    write_sendings(stored.ledger, ledger.attempts, np.zeros(len(ledger.attempts), np.bool_), ledger.sent_at)
    assert LOST not in [finding.kind for finding in stored.check().findings if finding.where == "telemetry"]


def test_what_the_publisher_sent_twice_may_be_there_twice(stored: Stored) -> None:
    ledger = Ledger.load(stored.ledger)
    write_sendings(stored.ledger, 2 * ledger.attempts, ledger.confirmed, ledger.sent_at)
    flag_a_copy(stored)
    double("dead_letters")(stored)
    assert stored.check().findings == []
    double("telemetry")(stored)  # without the bit it is doubled all the same
    assert [finding.kind for finding in stored.check().findings] == [DOUBLED]


def test_examples_name_the_rows(stored: Stored) -> None:
    row = stored.read("telemetry").slice(5, 1).to_pylist()[0]
    lose("telemetry")(stored)
    finding = next(finding for finding in stored.check().findings if finding.kind == LOST)
    assert row["device_id"] in finding.examples[0] and f"seq={row['seq']}" in finding.examples[0]


def test_the_stream_is_the_same_for_a_seed_and_its_broken_messages_are_unique() -> None:
    assert sent() == sent()
    _, letters = Decoder(DecodeSettings())(raw_batch([payload for _, payload in sent()]))
    assert letters is not None
    singles = pc.value_counts(letters.column("payload")).field("counts").to_pylist()
    assert len(singles) > 10 and max(singles) <= 2  # twice: an array that is sent twice on purpose
    assert msgspec.json.decode(sent()[0][1])["seq"] == 1
