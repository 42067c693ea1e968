"""The chaos suite in short: a dozen kills, some outages, and every message compared. ``make chaos`` runs it long.

SEED=n repeats a run; the seed of a run that fails is in its message.
"""

import os
import random
import sys
from pathlib import Path

import pytest
from chaos import mutations, report
from chaos.scenarios import run
from servers import find_azurite, find_postgresql, find_psqlodbc, has_mosquitto, missing

# On CI the same plan each time; elsewhere each run draws another.
SEED = int(
    os.environ.get("SEED") or (7 if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1_000_000))
)


def said(text: str) -> None:
    print(f"chaos SEED={SEED}: {text}", file=sys.stderr)  # pytest shows it when the test fails


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("scenario", "kills"), [("single", 6), ("cluster", 3)])
def test_nothing_is_lost_and_nothing_doubled(scenario: str, kills: int, tmp_path: Path) -> None:
    if not has_mosquitto():
        missing("Mosquitto")
    if scenario == "cluster" and not (find_postgresql() and find_psqlodbc() and find_azurite()):
        missing("PostgreSQL, its ODBC driver, or Azurite")
    result = run(scenario, tmp_path, SEED, kills=kills, rounds=0, rescale=False, say=said)
    assert result.kills >= kills and result.verdict.counts["confirmed"] > 10_000
    assert result.passed, report.text(result)


def test_mutated_messages_raise_nothing_and_are_accounted_for() -> None:
    tally = mutations.run(40_000, SEED)
    assert tally.problems == [], mutations.text(tally, SEED, 0.0)
    assert tally.messages == 40_000 and tally.elements > 40_000
    # Most kinds of dead letter were met, and enough of the messages were still sound.
    assert len(tally.reasons) >= 9 and tally.rows > 10_000
