"""Models of one's own on the command line: check, list, describe, attach; and then they run."""

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
from onnx_files import DOUBLE, INT64, Node, recurrent, save, scikit_learn, windowed
from telemetry import batch, sample

from voltmill.flows import cli
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import offline
from voltmill.operators.model import METADATA_KEY, SHIPPED, Chosen, Contract, Feature, load
from voltmill.operators.onnx_file import write_metadata

CONTRACT = Contract(
    kind="features",
    name="mine",
    version="1",
    target="soc",
    unit="percent",
    features=(
        Feature(name="cell_voltage_mean_volt", offset=0, scale=1, low=3.0, high=4.0),
        Feature(name="c_rate", offset=0, scale=1, low=-3, high=3),
    ),
    outputs=("value",),
    current_sign="positive_while_charging",
    dt_range_seconds=(0.5, 60.0),
    cell_type="my-cell",
    nominal_ah=3.0,
    training_data_sha256="00" * 32,
    errors={"unseen": {"mae": 1.0, "rmse": 1.2, "worst": 4.0}},
)
STEP: dict[str, Any] = {"kind": "step", "state_size": 4}
WINDOW: dict[str, Any] = {"kind": "window", "window_rows": 5}


class Done(NamedTuple):
    status: int
    out: list[str]
    err: list[str]


Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        found = capsys.readouterr()
        return Done(int(ended.value.code or 0), found.out.splitlines(), found.err.splitlines())

    return run


def give(path: Path, **change: Any) -> Path:
    """Put a contract into a file."""
    contract = msgspec.structs.replace(CONTRACT, **change)
    path.write_bytes(write_metadata(path.read_bytes(), METADATA_KEY, msgspec.json.encode(contract).decode()))
    return path


def sees(call: Call, path: Path, *words: str, lines: int | None = None) -> Done:
    """It finds problems, each in a line that names the file."""
    done = call("check", path)
    assert done.status == 2 and all(line.startswith(f"{path}: ") for line in done.err), done
    assert not any(line.endswith(": good") for line in done.out)
    assert all(any(word in line for line in done.err) for word in words), done.err
    assert lines is None or len(done.err) == lines, done.err
    return done


class TestCheck:
    def test_a_good_one(self, call, tmp_path):
        path = give(scikit_learn(tmp_path / "m.onnx"))
        done = call("check", path)
        assert (done.status, done.err) == (0, [])
        assert done.out[0] == f"{path}: good"
        assert done.out[1] == 'm: soc in percent, for my-cell (3 Ah a cell), version 1, called "mine" in predictions'
        assert re.fullmatch(r"  cost of a row: [\d.e+]+ µs in 1, [\d.]+ µs in 100, [\d.]+ µs in 1000", done.out[-2])
        assert done.out[-1] == "  IR version 9, operator sets onnx 17, ai.onnx.ml 1"

    @pytest.mark.parametrize(("make", "change"), [(recurrent, STEP), (windowed, WINDOW)])
    def test_good_ones_with_memory(self, call, tmp_path, make, change):
        done = call("check", give(make(tmp_path / "m.onnx"), **change))
        assert (done.status, done.err) == (0, [])
        assert done.out[2].startswith(f"  kind {change['kind']}, ")

    def test_those_that_are_shipped(self, call):
        for path in SHIPPED.glob("*.onnx"):
            assert call("check", path)[::2] == (0, [])

    def test_without_a_contract_types_and_rows_are_told_as_well(self, call, tmp_path):
        identity = [("Identity", ["X"], ["y"])]
        path = save(tmp_path / "m.onnx", identity, {"X": [1, 2]}, {"y": [1, 2]}, type_=DOUBLE, output_type=DOUBLE)
        sees(
            call,
            path,
            f'has no contract (JSON in metadata_props["voltmill.contract"]): `voltmill models describe {path}` writes',
            'input "X" is float64: export it as float32 (skl2onnx',
            'input "X" is of exactly 1 rows: export it with the first dimension free (torch.onnx.export',
            lines=3,
        )

    def test_labels(self, call, tmp_path):
        cast = [("Cast", ["X"], ["label"], {"to": INT64})]
        path = give(save(tmp_path / "m.onnx", cast, {"X": [None, 2]}, {"label": [None, 2]}, output_type=INT64))
        sees(
            call,
            path,
            'output "label" is whole numbers (int64), as the labels of a classifier are: export a regressor',
            'output "label" is (rows, 2): the contract says (rows, 1) (outputs value): one of the two is wrong',
        )

    def test_an_input_for_each_column(self, call, tmp_path):
        columns = ["a", "b", "c"]
        path = save(
            tmp_path / "m.onnx",
            [("Concat", columns, ["X"], {"axis": 1}), ("ReduceSum", ["X", "axis"], ["y"])],
            {name: [None, 1] for name in columns},
            {"y": [None, 1]},
            {"axis": np.array([1])},
        )
        sees(call, give(path), '3 inputs ("a", "b", "c"): the kind features has 1, (rows, 2): export it from an array')

    @pytest.mark.parametrize(
        ("make", "change", "words"),
        [
            (recurrent, {}, 'if the second is state that is carried on, set kind = "step" and state_size'),
            (
                recurrent,
                {**STEP, "state_size": 5},
                'input "h" is (rows, 4): the contract says (rows, 5) (state_size 5)',
            ),
            (windowed, {}, 'input "x" is (rows, 5, 2): the contract says (rows, 2) (2 features): set kind = "window"'),
            (windowed, {**WINDOW, "window_rows": 6}, "the contract says (rows, 6, 2) (6 rows of 2 features)"),
            (
                scikit_learn,
                WINDOW,
                'input "X" is (rows, 2): the contract says (rows, 5, 2) (5 rows of 2 features): set',
            ),
            (scikit_learn, {"outputs": ("value", "lo90", "hi90")}, 'output "variable" is (rows, 1): the contract says'),
            (scikit_learn, {"features": CONTRACT.features[:1]}, "the contract says (rows, 1) (1 features)"),
        ],
    )
    def test_shapes(self, call, tmp_path, make, change, words):
        sees(call, give(make(tmp_path / "m.onnx"), **change), words)

    def test_contract_and_shapes_at_once(self, call, tmp_path):
        identity = [("Identity", ["X"], ["y"])]
        path = save(tmp_path / "m.onnx", identity, {"X": [3, 2]}, {"y": [3, 2]})
        contract = msgspec.to_builtins(CONTRACT) | {"targett": "soc", "nominal_ah": -1}
        contract["features"][1]["name"] = "c_ratee"
        path.write_bytes(write_metadata(path.read_bytes(), METADATA_KEY, json.dumps(contract)))
        sees(
            call,
            path,
            'voltmill.contract: unknown key "targett" (did you mean "target"?)',
            "voltmill.contract: nominal_ah: above 0",
            'voltmill.contract: features[1]: no feature "c_ratee" in the table features: did you mean "c_rate"',
            'input "X" is of exactly 3 rows',
            lines=4,
        )

    def test_too_new(self, call, tmp_path):
        path = give(scikit_learn(tmp_path / "m.onnx"))
        model = onnx.load(path)
        model.ir_version = 99
        path.write_bytes(model.SerializeToString())
        sees(call, path, "it is newer than onnxruntime", "older target_opset", lines=1)
        path = give(save(path, [("Relu", ["X"], ["y"])], {"X": [None, 2]}, {"y": [None, 2]}, opset=999))
        sees(call, path, "it is newer than onnxruntime", lines=1)

    def test_an_operator_that_is_not_there(self, call, tmp_path):
        path = save(tmp_path / "m.onnx", [("Magic", ["X"], ["y"])], {"X": [None, 2]}, {"y": [None, 1]})
        sees(call, give(path), "an operator that onnxruntime does not", lines=1)

    def test_weights_in_another_file(self, call, tmp_path):
        model = onnx.load(give(recurrent(tmp_path / "a.onnx"), **STEP))
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        sees(call, tmp_path / "m.onnx", "its weights are in another file, m.data", "external_data=False", lines=1)

    def test_a_row_that_gives_two(self, call, tmp_path):
        nodes: list[Node] = [("Concat", ["X", "X"], ["Z"], {"axis": 0}), ("ReduceSum", ["Z", "one"], ["y"])]
        path = save(tmp_path / "m.onnx", nodes, {"X": [None, 2]}, {"y": ["m", 1]}, {"one": np.array([1])})
        sees(call, give(path), 'output "y": 3 rows give (6, 1), the contract says (rows, 1): a row in, a row out')


def computed(path: Path, nodes: list[Node], weights: dict[str, Any] | None = None, **change: Any) -> Path:
    """A model of two inputs that sums them to ``s`` and makes ``y`` of it."""
    weights = {"axis": np.array([1]), **(weights or {})}
    nodes = [("ReduceSum", ["X", "axis"], ["s"]), *nodes]
    return give(save(path, nodes, {"X": [None, 2]}, {"y": [None, 1]}, weights), **change)


class TestTrial:
    """What only a run on random rows shows."""

    @pytest.mark.parametrize(
        ("nodes", "weights", "words"),
        [
            (
                [("Sub", ["s", "c"], ["d"]), ("Log", ["d"], ["y"])],
                {"c": [4.0]},
                "random rows within the ranges give NaN or infinity: narrow low and high",
            ),
            ([("Div", ["s", "c"], ["y"])], {"c": [7.0]}, "these look like fractions of 1, percent is wanted"),
            ([("Mul", ["s", "c"], ["y"])], {"c": [1000.0]}, "give soc outside 0 to 100"),
            (
                [("ReduceMean", ["s"], ["m"], {"axes": [0]}), ("Sub", ["s", "m"], ["d"]), ("Add", ["d", "c"], ["y"])],
                {"c": [50.0]},
                "in batches of 1: something is computed across rows: look for a mean",
            ),
            (
                [("RandomNormalLike", ["s"], ["r"]), ("Add", ["r", "c"], ["y"])],
                {"c": [50.0]},
                "two runs on the same rows differ by up to",
            ),
            (
                [
                    ("DynamicQuantizeLinear", ["s"], ["q", "qs", "qz"]),
                    ("DequantizeLinear", ["q", "qs", "qz"], ["d"]),
                    ("Add", ["d", "c"], ["y"]),
                ],
                {"c": [50.0]},
                "DynamicQuantizeLinear takes its scale from the whole batch: quantise with fixed scales",
            ),
            (
                [
                    ("BatchNormalization", ["s", "k", "b", "b", "k"], ["n", "m", "v"], {"training_mode": 1}),
                    ("Add", ["n", "c"], ["y"]),
                ],
                {"k": [1.0], "b": [0.0], "c": [50.0]},
                "BatchNormalization is in training mode: call model.eval() before the export",
            ),
        ],
    )
    def test_problems(self, call, tmp_path, nodes, weights, words):
        sees(call, computed(tmp_path / "m.onnx", nodes, weights), words, lines=1)

    def test_a_state_that_grows(self, call, tmp_path):
        path = give(recurrent(tmp_path / "m.onnx", keep=1.5), **STEP)
        sees(call, path, "state: no number any more after", "bound it", lines=1)
        sees(call, give(recurrent(path, keep=1.03), **STEP), "steps", "it grows; bound it", lines=1)

    def test_scales_and_intervals(self, call, tmp_path):
        nodes: list[Node] = [("MatMul", ["X", "W"], ["z"]), ("Add", ["z", "c"], ["y"])]
        weights = {"W": np.zeros((2, 3)), "c": [50.0, 60.0, 70.0]}
        path = save(tmp_path / "m.onnx", nodes, {"X": [None, 2]}, {"y": [None, 3]}, weights)
        give(path, outputs=("value", "lo90", "hi90"))
        sees(call, path, "lo90, hi90: the value is outside its interval in 100% of random rows: such a row counts as")
        weights = {"W": np.zeros((2, 2)), "c": [50.0, 0.0]}
        path = save(tmp_path / "m.onnx", nodes, {"X": [None, 2]}, {"y": [None, 2]}, weights)
        sees(call, give(path, outputs=("value", "laplace_scale")), "laplace_scale: some are 0 or below: end it in")

    def warned(self, call: Call, path: Path, *words: str, config: Path | None = None) -> None:
        done = call("check", path, *(["-c", config] if config else []))
        assert (done.status, done.err) == (0, []), done
        warnings = [line for line in done.out if line.startswith("warning: ")]
        assert all(any(word in line for line in warnings) for word in words), warnings
        assert len(warnings) == len(words), warnings

    def test_warnings(self, call, tmp_path):
        path = scikit_learn(tmp_path / "m.onnx")
        self.warned(call, give(path, errors={}), "errors: none are given")
        self.warned(call, give(path, errors={"a": {"mae": 1.0}}), "errors.a: without rmse, worst")
        self.warned(call, give(path, training_data_sha256="x"), "training_data_sha256: 64 hexadecimal digits")
        wide = (CONTRACT.features[0], msgspec.structs.replace(CONTRACT.features[1], low=-1e30, high=1e30))
        self.warned(
            call,
            give(scikit_learn(path, [30.0, 0.0], -50.0), features=wide),
            "features: c_rate: -1e+30 to 1e+30 refuses nothing",
        )
        self.warned(call, give(scikit_learn(path, [0.0, 0.0], 50.0)), "outputs: value: it is 50 whatever the input")
        self.warned(
            call, give(scikit_learn(path, [200.0, 0.0], -650.0)), "of random rows within the ranges give soc outside"
        )

    def test_a_fleet_without_the_cell(self, call, tmp_path):
        path, config = give(scikit_learn(tmp_path / "m.onnx")), tmp_path / "c.toml"
        config.write_text('[[fleet]]\nmatch = "*"\ncell_type = "other"\ncapacity_ah = 3.0\n')
        self.warned(call, path, 'cell_type "my-cell": no [[fleet]] table has it', config=config)
        config.write_text('[[fleet]]\nmatch = "*"\ncell_type = "my-cell"\ncapacity_ah = 3.0\n')
        self.warned(call, path, config=config)

    def test_windows_of_the_configuration_are_columns(self, call, tmp_path):
        name = "current_mean_30s_ampere"
        path = give(
            scikit_learn(tmp_path / "m.onnx"),
            features=(CONTRACT.features[0], msgspec.structs.replace(CONTRACT.features[1], name=name)),
        )
        sees(call, path, f'no feature "{name}" in the table features', lines=1)
        config = tmp_path / "c.toml"
        config.write_text("[features]\nwindows_seconds = [30]\n")
        assert call("check", path, "-c", config).status == 0


class TestList:
    def test_where_from_and_what_for(self, call, tmp_path):
        (tmp_path / "folder").mkdir()
        give(scikit_learn(tmp_path / "folder" / "spare.onnx"))
        give(recurrent(tmp_path / "folder" / "mine.onnx"), **STEP)
        (tmp_path / "folder" / "broken.onnx").write_bytes(b"x")
        give(windowed(tmp_path / "apart.onnx"), **WINDOW, errors={"all": {"worst": 2.0}, "all/cold": {"worst": 9.0}})
        config = tmp_path / "c.toml"
        entries = [("mine", "live"), ("apart.onnx", "fallback"), ("gone.onnx", "live")]
        tables = [f'[[model]]\nname = "{name}"\nmode = "{mode}"' for name, mode in entries]
        config.write_text("\n".join(['[models]\nfolder = "folder"', *tables]))
        done = call("models", "-c", config)
        assert done.status == 1
        assert [line.partition(": ")[0] for line in done.err] == ["folder/broken.onnx", "[[model]] gone.onnx"]
        blocks = {text.partition(":")[0]: text for text in re.split(r"\n(?! )", "\n".join(done.out))}
        assert {"lg_hg2_soc", "spare", "mine", "apart.onnx"} <= set(blocks)
        assert f"\n  used: not by {config}\n" in blocks["lg_hg2_soc"]
        assert f"\n  from: folder, folder/mine.onnx\n  used: live, by {config}\n" in blocks["mine"]
        assert f"\n  from: folder, folder/spare.onnx\n  used: shadow, by {config}\n" in blocks["spare"]
        assert f"\n  from: file, apart.onnx\n  used: fallback, by {config}\n" in blocks["apart.onnx"]
        assert "\n  all: worst 2.00\n  worst of all, all/cold: worst 9.00" in blocks["apart.onnx"]

    def test_for_machines(self, call, tmp_path):
        done = call("models", "--json")
        assert (done.status, done.err) == (0, [])
        found = {each["name"]: each for each in map(json.loads, done.out)}
        soc, model = found["lg_hg2_soc"], load("lg_hg2_soc")
        assert msgspec.convert(soc["contract"], Contract) == model.contract
        assert (soc["sha256"], soc["origin"], soc["mode"]) == (model.sha256, "shipped", "live")
        assert Path(soc["file"]).name == "lg_hg2_soc.onnx"
        assert soc["worst_case"] in model.contract.errors

    def test_endpoints_and_wrong_contracts_of_theirs(self, call, tmp_path):
        (tmp_path / "m.json").write_bytes(msgspec.json.encode(CONTRACT))
        config = tmp_path / "c.toml"
        text = '[[model]]\nname = "far"\n[model.endpoint]\nurl = "https://a.example/score"\ncontract = "m.json"\n'
        config.write_text(text)
        done = call("models", "-c", config)
        assert (done.status, done.err) == (0, [])
        assert "  from: endpoint, https://a.example/score" in done.out
        config.write_text(text.replace("m.json", "no.json"))
        assert call("models", "-c", config).err == [
            "[[model]] no.json: cannot be read (No such file or directory): name the contract of the model"
        ]

    def test_the_configuration_is_wrong(self, call, tmp_path):
        (tmp_path / "c.toml").write_text("[sqll]\n")
        assert call("models", "-c", tmp_path / "c.toml").status == 2


def edited(path: Path, **values: Any) -> None:
    """Fill in a template as a person would: line by line."""
    text = path.read_text()
    for key, value in values.items():
        text, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
        assert found == 1, key
    blank = re.compile(r'name = "\?", offset = 0.0, scale = 1.0, low = "\?", high = "\?"')
    for f in CONTRACT.features:
        text, found = blank.subn(f'name = "{f.name}", offset = 0, scale = 1, low = {f.low}, high = {f.high}', text, 1)
        assert found == 1
    path.write_text(text)


FILLED = {
    "target": '"soc"',
    "unit": '"percent"',
    "current_sign": '"positive_while_charging"',
    "dt_range_seconds": "[0.5, 60]",
    "cell_type": '"my-cell"',
    "nominal_ah": "3",
    "training_data_sha256": f'"{"ab" * 32}"',
}


def estimated(path: Path) -> list[float | None]:
    """What estimate makes of ten samples with this model."""
    fleet = Fleet([FleetEntry(match="*", cell_type="my-cell", capacity_ah=3.0)])
    telemetry = batch([sample(k, current_ampere=-3.0) for k in range(10)])
    (made,) = EstimateState(lambda: [Chosen(load(path), "live")], fleet).apply(offline(telemetry, fleet))
    return made.batch.column("value").to_pylist()


class TestDescribeAndAttach:
    @pytest.mark.parametrize(("make", "kind"), [(scikit_learn, "features"), (recurrent, "step"), (windowed, "window")])
    def test_from_a_file_without_a_contract_into_the_stream(self, call, tmp_path, make, kind):
        path, toml = make(tmp_path / "mine.onnx"), tmp_path / "mine.contract.toml"
        done = call("models", "describe", path)
        assert done == (
            0,
            [f"{toml}: a template for {path}; when it is edited: voltmill models attach {path} {toml}"],
            [],
        )
        draft = tomllib.loads(toml.read_text())
        assert (draft["kind"], len(draft["features"]), draft["outputs"]) == (kind, 2, ["value"])
        assert (draft["state_size"], draft["window_rows"]) == {"step": (4, 0), "window": (0, 5)}.get(kind, (0, 0))
        before = path.read_bytes()
        done = call("models", "attach", path, toml)
        assert done.status == 2 and done.err[-1] == f"{path}: nothing was written" and path.read_bytes() == before
        assert f'{toml}: target: is still "?": fill it in: one of soc, soh, rul' in done.err
        edited(toml, **FILLED)
        done = call("models", "attach", path, toml)
        assert (done.status, done.err, done.out[0]) == (0, [], f"{path}: contract stored")
        assert done.out[-1].startswith("warning: errors: none are given")
        assert call("check", path).status == 0
        assert onnx.load(path).graph == onnx.load_from_string(before).graph
        values = estimated(path)
        assert values[-1] is not None and 0 <= values[-1] <= 100
        assert [value is None for value in values] == [kind == "window" and k < 4 for k in range(10)]

    def test_a_contract_that_is_there_comes_out_as_it_was(self, call, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes((SHIPPED / "lg_hg2_soc.onnx").read_bytes())
        assert "the contract of" in call("models", "describe", path).out[0]
        out = tmp_path / "new.onnx"
        done = call("models", "attach", path, tmp_path / "m.contract.toml", "-o", out)
        assert done.status == 0 and load(out).contract == load(path).contract
        assert onnx.load(out).graph == onnx.load(path).graph

    def test_every_field_is_told_and_survives(self, call, tmp_path):
        path = give(
            scikit_learn(tmp_path / "m.onnx"),
            features=(msgspec.structs.replace(CONTRACT.features[0], missing=3.5), CONTRACT.features[1]),
            conditions=({"name": "history_seconds", "low": 60.0, "high": 1e9},),
            errors={'a "b"/é\\': {"mae": 1.5}},
            name='it\'s "é"\n',
        )
        call("models", "describe", path)
        text = (tmp_path / "m.contract.toml").read_text()
        for name in Contract.__struct_fields__:
            assert re.search(rf"^(\[?){name}\b", text, re.M) or name == "fusion", name
        call("models", "describe", path, "-o", tmp_path / "m.json")
        for file in ("m.contract.toml", "m.json"):
            done = call("models", "attach", path, tmp_path / file, "-o", tmp_path / "out.onnx")
            assert done.status == 0 and load(tmp_path / "out.onnx").contract == load(path).contract

    @pytest.mark.parametrize("table", ["features", "sessions", "health"])
    def test_every_column_of_the_table_is_listed(self, call, tmp_path, table):
        from voltmill.flows.choice import table_columns
        from voltmill.flows.config import Config

        path = scikit_learn(tmp_path / "m.onnx")
        call("models", "describe", path, "--table", table)
        text = (tmp_path / "m.contract.toml").read_text()
        assert tomllib.loads(text)["table"] == table
        listed = set(re.findall(r"^#   (\w+)  ", text.partition("\n\n")[0], re.M))
        assert listed == set(table_columns(Config())[table])

    def test_what_must_be_mended_in_the_model_itself_is_told(self, call, tmp_path):
        identity = [("Identity", ["X"], ["y"])]
        path = save(tmp_path / "m.onnx", identity, {"X": [8, 2]}, {"y": [8, 2]}, type_=DOUBLE, output_type=DOUBLE)
        warnings = call("models", "describe", path).out[1:]
        assert [line.split(":")[1] for line in warnings] == [' input "X" is float64', ' input "X" is of exactly 8 rows']
        edited(tmp_path / "m.contract.toml", **FILLED, outputs='["value"]')
        done = call("models", "attach", path, tmp_path / "m.contract.toml")
        assert done.status == 2 and any("float64" in line for line in done.err) and "nothing was" in done.err[-1]

    def test_nothing_is_overwritten_unasked(self, call, tmp_path):
        path, out = scikit_learn(tmp_path / "m.onnx"), tmp_path / "m.contract.toml"
        out.write_text("mine")
        done = call("models", "describe", path)
        assert done.status == 2 and "is there already: --force overwrites it" in done.err[0]
        assert out.read_text() == "mine"
        assert call("models", "describe", path, "--force").status == 0 and out.read_text() != "mine"

    def test_the_file_is_replaced_at_once_and_keeps_its_mode(self, call, tmp_path):
        path = give(scikit_learn(tmp_path / "m.onnx"))
        call("models", "describe", path)
        path.chmod(0o640)
        inode = path.stat().st_ino
        assert call("models", "attach", path, tmp_path / "m.contract.toml").status == 0
        assert path.stat().st_ino != inode and stat.S_IMODE(path.stat().st_mode) == 0o640
        assert sorted(os.listdir(tmp_path)) == ["m.contract.toml", "m.onnx"]

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("c.toml", b"kind = ", "c.toml: not TOML: "),
            ("c.json", b"{", "c.json: not JSON: "),
            ("c.toml", b"\xff", "c.toml: not UTF-8: byte 0"),
            ("c.toml", b"nominal_ah = inf", "c.toml: nominal_ah: is inf: a finite number is wanted"),
            ("c.json", b"[]", "c.json: is a list: an object with the keys of a contract is wanted"),
        ],
    )
    def test_wrong_contracts(self, call, tmp_path, name, content, words):
        path = scikit_learn(tmp_path / "m.onnx")
        (tmp_path / name).write_bytes(content)
        done = call("models", "attach", path, tmp_path / name)
        assert done.status == 2 and any(words in line for line in done.err), done.err

    @pytest.mark.parametrize("command", [["describe", "m.onnx"], ["attach", "m.onnx", "c.json"]])
    def test_files_that_are_no_models(self, call, tmp_path, command):
        (tmp_path / "c.json").write_bytes(msgspec.json.encode(CONTRACT))
        done = call("models", *command)
        assert done.status == 2 and "m.onnx: cannot be read" in done.err[0]
        (tmp_path / "m.onnx").write_bytes(b"no model")
        done = call("models", *command)
        assert done.status == 2 and "m.onnx: not a model that onnxruntime can run" in done.err[0]

    def test_wrong_contracts_inside_can_be_replaced(self, call, tmp_path):
        path = scikit_learn(tmp_path / "m.onnx")
        path.write_bytes(write_metadata(path.read_bytes(), METADATA_KEY, "{"))
        done = call("models", "describe", path)
        assert done.status == 2 and "voltmill.contract: is not JSON" in done.err[0]
        (tmp_path / "c.json").write_bytes(msgspec.json.encode(CONTRACT))
        assert call("models", "attach", path, tmp_path / "c.json").status == 0
        assert load(path).contract == CONTRACT
