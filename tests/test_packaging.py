"""The layout: source folders at the top level, one package `voltmill` when imported, built and installed."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("flows", "operators", "connectors", "kernels")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())

# Runs in a process of its own, in a folder of its own, with the installed wheel before the editable install.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
site = sys.argv[1]
sys.path.insert(0, site)
import voltmill
for module in pkgutil.walk_packages(voltmill.__path__, "voltmill."):
    importlib.import_module(module.name)
ours = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "voltmill"}
assert all(file.startswith(site) for file in ours.values()), ours
print(*sorted(ours))
"""
LOAD_MODELS = """
import sys
sys.path.insert(0, sys.argv[1])
from voltmill.operators.model import SHIPPED, OnnxModel
assert str(SHIPPED).startswith(sys.argv[1]), SHIPPED
print(*(OnnxModel(file).contract.target for file in SHIPPED.glob("*.onnx")))
"""
APPLY_SCHEMA = """
import sys
sys.path.insert(0, sys.argv[1])
from voltmill.connectors import sql_schema
assert sql_schema.__file__.startswith(sys.argv[1]), sql_schema.__file__
print(*(one.name for dialect in ("sqlite", "postgresql", "mssql") for one in sql_schema.migrations(dialect)))
"""
RUN_SCRIPT = """
import sys
from importlib.metadata import distribution
sys.path.insert(0, sys.argv.pop(1))
voltmill = distribution("voltmill")
assert str(voltmill.locate_file("")) == sys.path[0], voltmill.locate_file("")
(script,) = voltmill.entry_points.select(group="console_scripts", name="voltmill")
sys.exit(script.load()())
"""


def source_files() -> set[str]:
    """What stands in the code folders, under the names it has in the package."""
    files = (file for layer in (*LAYERS, "deploy/sql") for file in (ROOT / layer).rglob("*") if file.is_file())
    names = {str(file.relative_to(ROOT)).removeprefix("deploy/") for file in files if "__pycache__" not in file.parts}
    return {f"voltmill/{name}" for name in names}


def modules() -> set[str]:
    """The dotted name of every module of the package."""
    files = source_files() | {"voltmill/__init__.py"}
    return {name[:-3].removesuffix("/__init__").replace("/", ".") for name in files if name.endswith(".py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return Path(built)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed: one of pure Python is unpacked and nothing else."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(code: str, *arguments: str | Path, cwd: Path) -> str:
    command = [sys.executable, "-I", "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == source_files() | {"voltmill/__init__.py", "voltmill/py.typed"}
    assert "voltmill/flows/graph.py" in package
    assert any(name.startswith("voltmill/operators/models/") and name.endswith(".onnx") for name in package)
    assert any(name.startswith("voltmill/kernels/") and name.endswith(".json") for name in package)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_every_module_of_the_wheel_imports_without_a_warning(site: Path, tmp_path: Path) -> None:
    assert set(run(IMPORT_EVERYTHING, site, cwd=tmp_path).split()) == modules()


def test_the_wheel_finds_its_models(site: Path, tmp_path: Path) -> None:
    assert "soc" in run(LOAD_MODELS, site, cwd=tmp_path).split()


def test_the_wheel_finds_the_schemas_of_its_databases(site: Path, tmp_path: Path) -> None:
    found = run(APPLY_SCHEMA, site, cwd=tmp_path).split()
    assert found.count("001_tables") == 3


def test_the_command_of_the_wheel_answers(site: Path, tmp_path: Path) -> None:
    helped = run(RUN_SCRIPT, site, "--help", cwd=tmp_path)
    assert all(command in helped for command in ("demo", "run", "replay", "simulate", "check", "models"))


def test_the_links_lead_to_every_module() -> None:
    """A link that is missing or not followed would leave the layers unchecked, and the check would pass."""
    assert grimp.build_graph("voltmill", cache_dir=None).modules == modules()


def test_imports_run_one_way() -> None:
    # In a process of its own: import-linter configures logging, which would silence the loggers of other tests.
    check = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def declared(requirements: list[str]) -> set[str]:
    """The names in a list of requirements."""
    return {re.split("[^a-z0-9-]", requirement)[0] for requirement in requirements}


def test_every_import_is_a_declared_dependency() -> None:
    """The demo runs without the development group, and without luck about what other packages depend on.

    What an extra brings is imported where it is used (``test_extras`` runs everything without them).
    """
    graph = grimp.build_graph("voltmill", include_external_packages=True, cache_dir=None)
    imported = {module.split(".")[0] for module in graph.modules} - sys.stdlib_module_names
    owners = packages_distributions()  # several of a namespace package, such as azure
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    named = {"voltmill"}.union(*map(declared, [PYPROJECT["project"]["dependencies"], *extras]))
    lacking = {
        module
        for module in imported
        if not {owner.lower().replace("_", "-") for owner in owners.get(module, [module])} & named
    }
    assert not lacking


def test_the_lock_matches_the_declared_dependencies() -> None:
    (locked,) = (package for package in LOCK["package"] if package["name"] == "voltmill")
    assert {p["name"] for p in locked["dependencies"]} == declared(PYPROJECT["project"]["dependencies"])
    for extra, requirements in PYPROJECT["project"]["optional-dependencies"].items():
        assert {p["name"] for p in locked["optional-dependencies"][extra]} == declared(requirements)
    for group, requirements in PYPROJECT["dependency-groups"].items():
        assert {p["name"] for p in locked["dev-dependencies"][group]} == declared(requirements)
