"""Fixtures shared by the tests: real servers, the engine with types, the data sets."""

import logging
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import cluster_main, run_main
from servers import (
    Azurite,
    Certificates,
    Mosquitto,
    PostgreSQL,
    find_azurite,
    find_postgresql,
    find_psqlodbc,
    has_mosquitto,
    make_certificates,
    missing,
)

if TYPE_CHECKING:
    from live_flow import Live

# On CI the same code gives the same verdict; elsewhere each run looks for other examples.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    hypothesis.settings.load_profile("ci")

# The flows that tests start share their byte code as those of a user do; compiling it doubles what a start costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Helpers, and flows that run in processes of their own: the search for doctests would import them.
collect_ignore = [file.name for file in Path(__file__).parent.glob("*.py") if not file.name.startswith("test_")]


class RunFlow(Protocol):
    """Runs a flow to its end; with ``recovery`` it goes on where the last run with that folder ended."""

    def __call__(
        self, flow: Dataflow, *, recovery: Path | None = None, workers: int = 1, epoch_seconds: float = 0.1
    ) -> None: ...


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A command that was run in this process leaves a handler, on a stream that ends with its test."""
    log = logging.getLogger("voltmill")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(scope="session")
def run_flow() -> RunFlow:
    def run(flow: Dataflow, *, recovery: Path | None = None, workers: int = 1, epoch_seconds: float = 0.1) -> None:
        options: dict[str, Any] = {"epoch_interval": timedelta(seconds=epoch_seconds)}
        if recovery is not None:
            if not recovery.exists():
                recovery.mkdir(parents=True)
                init_db_dir(recovery, 1)
            options["recovery_config"] = RecoveryConfig(str(recovery))
        if workers == 1:
            run_main(flow, **options)
        else:
            cluster_main(flow, [], 0, worker_count_per_proc=workers, **options)

    return run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Mosquitto]]:
    """Starts Mosquitto with the options of ``servers.Mosquitto``; all are stopped at the end."""
    if not has_mosquitto():
        missing("Mosquitto")
    started: list[Mosquitto] = []

    def start(**options: Any) -> Mosquitto:
        started.append(Mosquitto(tmp_path_factory.mktemp("mosquitto"), **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def kernels() -> None:
    """Compiled, once: processes that a test waits for would each do it by themselves, and take longer than it waits."""
    from voltmill.flows.warm_up import compiled, warm_up

    if not compiled():
        warm_up()


@pytest.fixture
def live(tmp_path: Path, mosquitto: Callable[..., Mosquitto], kernels: None) -> Iterator[Callable[..., "Live"]]:
    """Makes a live flow (``live_flow.Live``) on a broker of its own; what still runs at the end is killed."""
    from live_flow import Live

    made: list[Live] = []

    def make(**options: Any) -> Live:
        made.append(Live(tmp_path, mosquitto().port, **options))
        return made[-1]

    yield make
    for flow in made:
        flow.end()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One PostgreSQL server for all; a test that stops it starts it again."""
    if find_postgresql() is None:
        missing("PostgreSQL")
    if find_psqlodbc() is None:
        missing("the ODBC driver of PostgreSQL")
    server = PostgreSQL()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """One Azurite for all, each test in containers of its own; a test that stops it starts it again."""
    if find_azurite() is None:
        missing("Azurite")
    server = Azurite(tmp_path_factory.mktemp("azurite"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public battery data sets, beside the repository or where VOLTMILL_DATA says."""
    path = Path(os.environ.get("VOLTMILL_DATA") or Path(__file__).parent.parent / ".." / "shared" / "data").resolve()
    if not path.is_dir():
        pytest.skip("no data sets: set VOLTMILL_DATA to their folder")
    return path
