"""The flow under test: one process or a cluster, each restarted when it ends, as an orchestrator does."""

import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from chaos.processes import end, spawn
from voltmill.flows.broker import free_port

_RUNNING: Final = b'"message": "running"'
_SUBSCRIBED: Final = b"mqtt subscribed"
_RESTART_SECONDS: Final = 0.2
#: In a cluster the others end when one does; how soon at the latest.
_FOLLOW_SECONDS: Final = 15.0


@dataclass
class _Member:
    """One process of the flow."""

    index: int
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    spawned: float = 0.0
    log_begin: int = 0
    ready: float | None = None
    ended: float | None = None
    told: bool = False
    """Whether it was killed or asked to end."""


@dataclass
class Flow:
    """``voltmill run live``, supervised: call ``supervise`` often."""

    folder: Path
    config: Path
    workers: int = 1
    """How many processes; a change takes effect when it is started anew."""
    kills: int = 0
    own_ends: list[str] = field(default_factory=list)
    """The last words of processes that ended without being told to, or because another of the cluster had."""
    peak_rss_bytes: int = 0
    members: list[_Member] = field(default_factory=list)
    _looked: float = 0.0
    _last_told: float = 0.0

    def start(self) -> None:
        """Start all processes."""
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(self.workers)] if self.workers > 1 else []
        self._addresses = ";".join(addresses)
        self.members = [_Member(k, self.folder / f"flow-{k}.log") for k in range(self.workers)]
        for member in self.members:
            self._spawn(member)

    def _spawn(self, member: _Member) -> None:
        arguments = ["-m", "voltmill.flows.cli", "run", "live", "-c", str(self.config)]
        # One process has two worker threads: they share a dataflow, as those of several processes do not.
        arguments += ["-a", self._addresses, "-i", str(member.index)] if self._addresses else ["-w", "2"]
        member.log_begin = member.log.stat().st_size if member.log.exists() else 0
        member.process = spawn(arguments, member.log, cwd=self.folder)
        member.spawned, member.ready, member.ended, member.told = time.monotonic(), None, None, False

    def supervise(self) -> None:
        """Start again what has ended; look at memory and at who is running."""
        now = time.monotonic()
        for member in self.members:
            assert member.process is not None
            if member.process.poll() is None:
                continue
            if member.ended is None:
                member.ended = now
                if not (member.told or (self.workers > 1 and now - self._last_told < _FOLLOW_SECONDS)):
                    self.own_ends.append(f"process {member.index}, status {member.process.returncode}: {_last(member)}")
            if now - member.ended >= _RESTART_SECONDS:
                self._spawn(member)
        if now - self._looked > 0.1:
            self._looked = now
            self._look()

    def _look(self) -> None:
        for member in self.members:
            assert member.process is not None
            if member.ready is None and not member.told and _RUNNING in _since(member):
                member.ready = time.monotonic()
            try:
                self.peak_rss_bytes = max(self.peak_rss_bytes, psutil.Process(member.process.pid).memory_info().rss)
            except psutil.Error:
                pass  # it has just ended

    def kill(self, index: int) -> None:
        """kill -9 one process; if it happens not to run, the one that is started next is not touched."""
        member = self.members[index % len(self.members)]
        if member.process is not None and member.process.poll() is None:
            member.told, member.ready, self._last_told = True, None, time.monotonic()
            member.process.kill()
            member.process.wait()
            self.kills += 1

    def ask_to_drain(self) -> None:
        """SIGTERM to all; whoever has ended is started again by ``supervise``."""
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.told, member.ready, self._last_told = True, None, time.monotonic()
                member.process.send_signal(signal.SIGTERM)

    def drain(self, within: float = 60.0) -> list[int]:
        """SIGTERM to all; their status when they have ended. None is started again."""
        self.ask_to_drain()
        deadline = time.monotonic() + within
        status = []
        for member in self.members:
            assert member.process is not None
            try:
                status.append(member.process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                end(member.process)
                status.append(-9)
        self.members = []
        return status

    @property
    def all_running(self) -> bool:
        """Whether every process has built its flow."""
        return bool(self.members) and all(m.ready is not None and m.ended is None for m in self.members)

    @property
    def subscribed(self) -> int:
        """How many subscriptions the broker has confirmed to what runs now."""
        return sum(_since(member).count(_SUBSCRIBED) for member in self.members)

    @property
    def rss_bytes(self) -> int:
        """Resident set of all processes together."""
        return sum(psutil.Process(m.process.pid).memory_info().rss for m in self.members if m.process is not None)

    @property
    def last_spawn(self) -> float:
        """When the youngest process was started, monotonic s."""
        return max(member.spawned for member in self.members)

    @property
    def ready_at(self) -> float:
        """When the last process had built its flow, monotonic s."""
        return max(member.ready or time.monotonic() for member in self.members)

    def close(self) -> None:
        """End what runs."""
        for member in self.members:
            end(member.process)

    def words(self) -> str:
        """The end of each log, for a failure."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("flow-*.log")))


def _since(member: _Member) -> bytes:
    with member.log.open("rb") as log:
        log.seek(member.log_begin)
        return log.read()


def _last(member: _Member) -> str:
    lines = _since(member).decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
