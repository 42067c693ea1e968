"""`make bench`: what the pipeline does on one core, and what limits it.

    python benchmarks/run.py [--quick]

Each measurement is a process of its own, pinned to one core; graph and fused loop take turns, so that
the ratio holds when the machine's speed drifts. Prints a table and writes ``benchmarks/latest.json``.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from voltmill.flows.demo import demo

HERE = Path(__file__).parent
TARGETS = {
    "end_to_end_1core": ">= 150,000",
    "ratio_to_fused_loop": ">= 0.85",
    "cost_ratio_100k_to_1k_devices": "<= 1.5",
    "state_bytes_per_device": "<= 2,048",
}
Result = dict[str, float]


def measure(what: str, devices: int, messages: int, folder: Path) -> Result:
    """One run of ``pipeline.py``."""
    core = str(max(os.sched_getaffinity(0)))
    command = [sys.executable, str(HERE / "pipeline.py"), what, str(devices), str(messages), str(folder), core]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: Result = json.loads(done.stdout.splitlines()[-1])
    rate = found.get("messages", found.get("rows", 0.0)) / found["seconds"]
    print(f"  {what:<7} {devices:>7,} devices {rate:>10,.0f} /s", file=sys.stderr, flush=True)
    return found


def rate(results: list[Result]) -> float:
    """Median of messages a second."""
    return statistics.median(r["messages"] / r["seconds"] for r in results)


def throughput(folder: Path, pairs: int, messages: int) -> list[dict[str, Any]]:
    """Graph against fused loop, cost by stage, replay."""
    graphs, loops, replays = [], [], []
    for _ in range(pairs):
        loops.append(measure("fused", 1000, messages, folder / "fused"))
        graphs.append(measure("graph", 1000, messages, folder / "graph"))
        replays.append(measure("replay", 1000, messages, folder / "graph"))
    ratios = [
        (g["messages"] / g["seconds"]) / (f["messages"] / f["seconds"]) for g, f in zip(graphs, loops, strict=True)
    ]
    rows = [
        row("end_to_end_1core", rate(graphs), "messages/s"),
        row("fused_loop_1core", rate(loops), "messages/s"),
        row("ratio_to_fused_loop", statistics.median(ratios), "1"),
        row("replay_rows_per_s", statistics.median(r["rows"] / r["seconds"] for r in replays), "rows/s"),
        row("bytes_per_message", graphs[0]["bytes_per_message"], "B"),
    ]
    stages = sorted(name for name in graphs[0] if name.startswith("stage:"))
    total = 0.0
    for name in stages:
        cost = statistics.median(1e6 * g[name] / g["messages"] for g in graphs)
        total += cost
        rows.append(row(f"cost_{name.removeprefix('stage:')}", cost, "µs/message"))
    whole = statistics.median(1e6 * g["seconds"] / g["messages"] for g in graphs)
    rows.append(row("cost_rest", whole - total, "µs/message"))  # engine, sharding, snapshots, file writes at epochs
    return rows


def scale(folder: Path, messages: int, runs: int) -> list[dict[str, Any]]:
    """A thousand devices against a hundred thousand."""
    few = [measure("graph", 1000, messages, folder / "few") for _ in range(runs)]
    many = [measure("graph", 100_000, messages, folder / "many") for _ in range(runs)]
    # The flow's own states are gone when it ends; those of the loop can be weighed.
    heavy, light = (measure("fused", devices, 400_000, folder / "state") for devices in (100_000, 1000))
    return [
        row("end_to_end_1core_100k_devices", rate(many), "messages/s"),
        row("cost_ratio_100k_to_1k_devices", rate(few) / rate(many), "1"),
        row("state_bytes_per_device", heavy["state_bytes_per_device"], "B"),
        row("memory_bytes_per_device", (heavy["grown_bytes"] - light["grown_bytes"]) / 99_000, "B"),
    ]


def latency(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Publish to stored at 2,000 messages a second, over a real broker: the demo at that rate."""
    os.sync()  # or the first writes wait for what the runs before left to the disk
    demo(folder / "demo", seconds=seconds, modules=320, speed=31.25)
    found = json.loads((folder / "demo" / "demo.json").read_bytes())
    return [
        row("latency_p50_ms", found["latency_p50_ms"], "ms"),
        row("latency_p99_ms", found["latency_p99_ms"], "ms"),
        row("latency_rate", found["published"] / seconds, "messages/s"),
    ]


def row(name: str, value: float, unit: str) -> dict[str, Any]:
    """A line of the results."""
    return {"name": name, "value": round(value, 3), "unit": unit}


def main() -> None:
    """Measure everything."""
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="voltmill-bench-", dir=HERE) as scratch:
        folder = Path(scratch)
        rows = throughput(folder, 1 if quick else 5, 200_000 if quick else 600_000)
        rows += scale(folder, 300_000 if quick else 1_200_000, 1 if quick else 3)
        rows += latency(folder, 12.0 if quick else 30.0)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; one core used\n")
    for r in rows:
        target = TARGETS.get(r["name"], "")
        print(f"{r['name']:<32} {r['value']:>14,.3f} {r['unit']:<12} {target}")
    if not quick:
        (HERE / "latest.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
