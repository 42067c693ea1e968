"""A sink on a disk of a few megabytes that fills up, until something else is removed from it. Run: full_disk.py FOLDER.

It mounts a tmpfs on the folder, so it needs a mount namespace of its own. Prints what it saw as JSON.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from stored_flow import telemetry

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.outage import Patience
from voltmill.kernels.schema import TELEMETRY

ROWS = 60


def main(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], check=True)
    other = folder / "other"
    other.write_bytes(os.urandom(4_000_000))
    waiting = threading.Event()
    patience = Patience("the lake", on_waiting=lambda on: waiting.set() if on else None)
    settings = LakeSettings(url=str(folder / "lake"), max_file_bytes=400_000)
    writer = LakeSink(settings, table="telemetry", schema=TELEMETRY, shards=["00"], store="s", patience=patience)
    part = writer.build_part("out", "00", None)
    seen: dict[str, object] = {}
    watcher = threading.Thread(target=watch, args=(folder, waiting, other, seen))
    watcher.start()
    for number in range(ROWS):
        part.write_batch([telemetry(number, 1, payload=os.urandom(70_000))])
    part.close()
    watcher.join()
    kept = sorted((folder / "lake").rglob("*.parquet"))
    rows = [n for path in kept for n in pq.read_table(path)["source_offset"].to_pylist()]
    print(json.dumps(seen | {"rows": rows}))


def watch(folder: Path, waiting: threading.Event, other: Path, seen: dict[str, object]) -> None:
    """While the sink waits, look at all that a reader could; then make room."""
    assert waiting.wait(60)
    me, looks, unreadable, temporary = psutil.Process(), 0, 0, 0
    before = me.memory_info().rss
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        for path in lake_files(folder, "*.parquet"):
            try:
                pq.read_table(path)
            except Exception:
                unreadable += 1
        temporary += bool(lake_files(folder, ".*.tmp"))  # there for the moment of an attempt
        time.sleep(0.01)
        looks += 1
    seen |= {"looks": looks, "unreadable": unreadable, "temporary": temporary}
    seen |= {"grown_bytes": me.memory_info().rss - before}
    files = len(lake_files(folder, "*.parquet"))
    other.unlink()
    began = time.monotonic()
    while len(lake_files(folder, "*.parquet")) == files:
        time.sleep(0.01)
    seen |= {"seconds_to_go_on": time.monotonic() - began}


def lake_files(folder: Path, pattern: str) -> list[Path]:
    return list((folder / "lake").rglob(pattern))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
