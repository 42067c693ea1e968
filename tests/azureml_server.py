"""Azure ML's inference server, in a process of its own, with the scoring script that is shipped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import urllib3

from voltmill.flows.broker import free_port

ROOT = Path(__file__).resolve().parents[1]
SCORE = ROOT / "deploy/azureml/score.py"
#: Its own command listens on every interface; this one on loopback alone.
START = "from azureml_inference_server_http import amlserver_linux as s; s.run('127.0.0.1', {port}, 1)"


class InferenceServer:
    """Serves what the environment names; ended by ``stop``, together with the worker that it forks."""

    def __init__(self, folder: Path, *, script: Path = SCORE, **environment: str) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}/score"
        kept = {name: os.environ[name] for name in ("PATH", "NUMBA_CACHE_DIR") if name in os.environ}
        self.environment = {
            **kept,
            "HOME": str(folder),
            "AZUREML_ENTRY_SCRIPT": str(script),
            "AML_APP_ROOT": str(folder),
            "AML_APP_INSIGHTS_ENABLED": "false",  # nothing is told to anyone outside
            **environment,
        }
        with (folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START.format(port=self.port)],
                env=self.environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_ready(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        with urllib3.HTTPConnectionPool("127.0.0.1", self.port) as pool:
            while time.monotonic() < deadline:
                assert self._process.poll() is None, self.log
                try:
                    if pool.request("GET", "/", retries=False, timeout=5.0).data == b"Healthy":
                        return
                except urllib3.exceptions.HTTPError:
                    time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout} s: {self.log}")

    def await_end(self, timeout: float = 60.0) -> int:
        """Its status, once it has ended by itself."""
        return self._process.wait(timeout)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")
