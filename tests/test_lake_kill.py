"""A flow that writes the lake is killed while someone reads all of it, as fast as can be."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stored_flow
from servers import Azurite
from test_lake import files, offsets

from voltmill.connectors.lake import LakeSettings

_numbers = count()


@pytest.fixture(params=["local", "azurite"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a lake; credentials are in the environment, where adlfs looks for them."""
    if request.param == "local":
        yield str(tmp_path / "lake")
    else:
        azurite: Azurite = request.getfixturevalue("azurite")
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
        yield f"abfs://killed-{next(_numbers)}/lake"


class Reader:
    """Lists the lake and reads every file it finds; what it meets must be whole, or be gone by now."""

    def __init__(self, url: str) -> None:
        self._store = LakeSettings(url=url).open()
        self.read = self.gone = 0

    def files(self) -> int:
        """Read all; how many files there were."""
        found = self._store.find("telemetry")
        for path in found:
            try:
                pq.read_table(self._store.open(f"telemetry/{path}"))
                self.read += 1
            except FileNotFoundError:
                self.gone += 1  # an orphan that was removed
            except pa.ArrowException as error:
                raise AssertionError(f"a reader met a half of {path}: {error}") from error
        return len(found)


def test_kill_9_leaves_each_row_once_and_no_reader_meets_a_half_file(lake: str, tmp_path: Path) -> None:
    rows, deaths = (2_400, (2, 6, 12, 18)) if "://" not in lake else (1_200, (2, 7))
    command = [sys.executable, stored_flow.__file__, str(tmp_path), str(rows), "", "", lake]
    choose, kills, reader = random.Random(5), 0, Reader(lake)
    for wanted in deaths:
        more = wanted + choose.randrange(4)
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        while child.poll() is None and reader.files() < more:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            reader.files()
    assert child.returncode == 0
    assert kills >= len(deaths) // 2 and reader.read > 50
    assert sorted(n for shard in stored_flow.SHARDS for n in offsets(lake, shard)) == list(range(rows))
    for shard in stored_flow.SHARDS:
        assert offsets(lake, shard) == sorted(offsets(lake, shard))
    assert not [path for path in files(lake) if path.endswith(".tmp")]
