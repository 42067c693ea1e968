"""What holds for every model and every operator that is found: a new one gets every check for free."""

import dataclasses
import importlib
import inspect
import json
import pickle
import pkgutil
import re
import sys
import typing
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bytewax.operators as op
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from bytewax.dataflow import Dataflow, Stream
from bytewax.testing import TestingSink, TestingSource
from payloads import raw
from telemetry import at, batch, content, cut, joined, sample

import voltmill.operators
from voltmill.flows.choice import table_columns
from voltmill.flows.config import Config
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import PREDICTION
from voltmill.kernels.session_table import session_columns
from voltmill.operators.features import CARRIED, offline
from voltmill.operators.model import SHIPPED, Chosen, discover
from voltmill.operators.shard import shard_names, split

FOUND = discover(columns=table_columns(Config()))


def test_every_model_that_is_found_loads():
    assert FOUND.problems == []
    assert {p.stem for p in SHIPPED.glob("*.onnx")} <= set(FOUND.models)


def inside(model, rows: int, seed: int = 0) -> np.ndarray:
    """Random features within the valid ranges."""
    low, high = (np.array([getattr(f, end) for f in model.contract.features], np.float32) for end in ("low", "high"))
    shape = (rows, model.contract.window_rows, len(low)) if model.contract.window_rows else (rows, len(low))
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def ask(model, x: np.ndarray) -> np.ndarray:
    """Outputs; of a step model those of a device's second row, after what its first row left."""
    if model.contract.kind != "step":
        return model.predict(x)
    out, carried = model.step(x, np.zeros((len(x), model.contract.state_size), np.float32))
    assert carried.shape == (len(x), model.contract.state_size) and carried.dtype == out.dtype == np.float32
    return np.concatenate([out, *model.step(x, carried)], axis=1)


@pytest.fixture(params=sorted(FOUND.models))
def model(request):
    return FOUND.models[request.param]


@pytest.mark.parametrize("rows", [0, 1, 2, 5000])
def test_shape_and_type(model, rows):
    out = ask(model, inside(model, rows))
    assert out.shape[0] == rows and out.dtype == np.float32
    if model.contract.kind != "step":
        assert out.shape == (rows, len(model.contract.outputs))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 100, 1000, 4096])
def test_a_row_is_the_same_to_the_bit_at_every_batch_size(model, size):
    x = inside(model, 5001)
    whole = ask(model, x).tobytes()
    assert b"".join(ask(model, x[i : i + size]).tobytes() for i in range(0, len(x), size)) == whole


def test_a_row_is_the_same_to_the_bit_in_random_cuts_and_company(model):
    rng = np.random.default_rng(1)
    x = inside(model, 5001)
    whole = ask(model, x)
    cuts = [0, *np.sort(rng.integers(0, len(x), 200)).tolist(), len(x)]
    parts = [ask(model, x[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    order = rng.permutation(len(x))
    assert ask(model, x[order]).tobytes() == whole[order].tobytes()
    assert ask(model, np.asfortranarray(x)).tobytes() == whole.tobytes()


def test_the_input_is_left_alone(model):
    x = inside(model, 100)
    before = x.copy()
    ask(model, x)
    assert x.tobytes() == before.tobytes()


def test_within_its_domain_the_outputs_are_numbers(model):
    x = inside(model, 20_000)
    out = ask(model, x)
    if x.ndim == 2:
        assert model.contract.in_domain(x).all()
    if model.contract.kind == "step":  # it may wait for a reading that it can begin from; what it carries is sound
        out = out[:, -model.contract.state_size :]
    assert np.isfinite(out).all()
    if "laplace_scale" in model.contract.outputs:
        assert (out[:, model.contract.outputs.index("laplace_scale")] > 0).all()


def test_rows_outside_every_domain_raise_nothing_and_harm_no_neighbour(model):
    x = inside(model, 64)
    bad = x.copy()
    strange = np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)[np.arange(32) % 4]
    bad[::2] = strange.reshape(-1, *[1] * (x.ndim - 1))
    if x.ndim == 2:
        assert not model.contract.in_domain(bad)[::2].any()
    assert ask(model, bad)[1::2].tobytes() == ask(model, x)[1::2].tobytes()


def test_it_says_how_wrong_it_is(model):
    """Errors are measured and the worst is named: a model without them cannot be trusted by anyone."""
    assert model.contract.errors
    for case, figures in model.contract.errors.items():
        assert {"mae", "rmse", "worst"} <= set(figures), case
        assert 0 < figures["mae"] <= figures["rmse"] <= figures["worst"], case
    assert len(bytes.fromhex(model.contract.training_data_sha256)) == 32


def test_its_names_fit_a_prediction(model):
    c = model.contract
    assert {"target", "unit", "model_name", "model_version", "model_sha256"} <= set(PREDICTION.names)
    assert c.name and c.version and len(bytes.fromhex(model.sha256)) == 32


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.onnx")), ids=lambda p: p.stem)
def test_a_shipped_model_has_a_card_with_the_figures_of_its_contract(path):
    card = path.with_suffix(".md").read_text()
    contract = FOUND.models[path.stem].contract
    assert contract.training_data_sha256 in card
    for case, figures in contract.errors.items():
        if "/" not in case:
            assert f"{figures['mae']:.2f} | {figures['rmse']:.2f} | {figures['worst']:.1f}" in card, case
    for heading in ("Data", "Errors", "Must not be used for", "How to retrain"):
        assert f"## {heading}" in card


def find_operators() -> dict[str, Callable[..., Any]]:
    """Every function made by Bytewax's ``@operator`` in ``voltmill.operators``, by module and name."""
    found = {}
    for entry in pkgutil.walk_packages(voltmill.operators.__path__, "voltmill.operators."):
        module = importlib.import_module(entry.name)
        for name, value in vars(module).items():
            if hasattr(value, "_op_cls") and value.__module__ == entry.name:
                found[f"{entry.name.removeprefix('voltmill.operators.')}.{name}"] = value
    return found


OPERATORS = find_operators()
KNOWN = Fleet([FleetEntry(match="known/*", cell_type="lg-hg2", capacity_ah=3.0, series=4)])
#: What a parameter without a default is given; settings and the like are made with their own defaults.
ARGUMENTS: dict[str, Any] = {
    "fleet": KNOWN,
    "models": lambda: [Chosen(FOUND.models["lg_hg2_soc"], "live")],
    "shards": 3,
    "every_seconds": {"soc": 60.0, "rul": 0.001},
}
FLOAT32 = np.finfo(np.float32)


@pytest.fixture(params=sorted(OPERATORS))
def operator(request):
    return OPERATORS[request.param]


def arguments(operator, **given) -> dict[str, Any]:
    """Values for every parameter without a default, beside ``step_id`` and the streams."""
    out = {}
    hints = typing.get_type_hints(inspect.unwrap(operator))
    for name, parameter in inspect.signature(operator).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            values = ARGUMENTS | given
            out[name] = values[name] if name in values else hints[name]()
    return out


def hostile() -> list[dict[str, Any]]:
    """What a fleet may send at its worst, or a foreign data set may hold, among sound rows."""
    nan, inf, big, tiny = float("nan"), float("inf"), float(FLOAT32.max), float(FLOAT32.smallest_subnormal)
    worst: list[dict[str, Any]] = [
        {},
        {"current_ampere": nan, "cell_voltage_volt": [nan] * 4, "cell_temperature_celsius": [nan], "voltage_volt": nan},
        {"cell_voltage_volt": [], "cell_temperature_celsius": []},
        {"cell_voltage_volt": [3.7] * 400, "cell_temperature_celsius": [25.0] * 400, "voltage_volt": 1480.0},
        {"cell_voltage_volt": [big, -big, tiny, -0.0], "current_ampere": big, "voltage_volt": -big},
        {"current_ampere": -big, "cell_temperature_celsius": [big, -big]},
        {"current_ampere": inf, "cell_voltage_volt": [inf, -inf, 3.7, nan], "cell_temperature_celsius": [-inf]},
        {"seq": 0},
        {"seq": 2**64 - 1},
        {"seq": 2**64 - 1},
        {"ingest_time": None, "quality_bits": 2**32 - 1},
        {"charge_ah": inf, "discharge_ah": -1e308, "bms_soc_percent": nan, "bms_soh_percent": big},
        {"event_time": 946_684_800_000_000},  # the first microsecond of 2000
        {"event_time": 4_102_444_799_999_999, "ingest_time": 4_102_444_799_999_999},  # the last of 2099
        {"event_time": -62_135_596_800_000_000, "ingest_time": None},  # the year 1, in a data set of no gateway
        {"event_time": 253_402_300_799_999_999, "ingest_time": None},  # 9999
        {"event_time": at(30), "ingest_time": at(-(10**8))},
        {"current_ampere": 0.0, "voltage_volt": 0.0, "cell_voltage_volt": [0.0]},
    ]
    devices = ("known/a", "known/b", "elsewhere", "", "é/" + "x" * 250)
    rng = np.random.default_rng(3)
    rows = []
    for k in range(400):
        change = worst[rng.integers(len(worst))] if rng.random() < 0.5 else {"seq": k}
        cells = (3.7 + 0.02 * rng.standard_normal(4)).tolist()
        sound = {"device_id": devices[rng.integers(len(devices))], "cell_voltage_volt": cells, "source_offset": k}
        rows.append(sample(float(k), current_ampere=float(rng.normal())) | sound | change)
    return rows + sound_hour()


def sound_hour() -> list[dict[str, Any]]:
    """Twenty minutes each of rest, charge and rest: what only comes of some time must come of something."""
    hour = [(400.0 + 60 * k, 2.0 if 20 <= k < 40 else 0.0) for k in range(60)]
    return [sample(t, device_id=d, current_ampere=amps) for t, amps in hour for d in ("known/a", "elsewhere")]


def raw_rows() -> pa.RecordBatch:
    """The same as messages, some of them broken, with ``NaN`` and ``Infinity`` where JSON has none."""
    texts = [json.dumps({k: v for k, v in row.items() if not k.startswith("source")}) for row in hostile()]
    payloads = [text.replace('"event_time": ', '"event_time":').encode() for text in texts]
    broken = [b"", b"[]", b"{}", b"\xff\xfe", b"null", b"[" * 9000, payloads[0][:-5], b'"' + b"x" * 2_000_000 + b'"']
    sound = b'{"device_id":"known/a","event_time":%d,"current_ampere":1,"cell_voltage_volt":[3.7],'
    good = [sound % (1_795_348_800_000_000 + k) + b'"cell_temperature_celsius":[25]}' for k in range(50)]
    return raw([*payloads, *broken, *good])


def soh_rows() -> pa.RecordBatch:
    """Sessions with an SOH as any model may give it, or none; cycles as any counter may run."""
    telemetry = batch(hostile())
    rng, n = np.random.default_rng(5), len(telemetry)
    odd = [np.nan, np.inf, -np.inf, 0.0, -5.0, 80.0, FLOAT32.max, FLOAT32.smallest_subnormal]

    def mixed(sound: np.ndarray, share: float) -> pa.Array:
        return pa.array(np.where(rng.random(n) < share, rng.choice(odd, n), sound).astype(np.float32))

    columns = {name: mixed(rng.normal(size=n), 0.1) for name in (c.name for c in session_columns())}
    columns["equivalent_full_cycles"] = mixed(np.arange(n) / 2, 0.1)
    value = mixed(98 - np.arange(n) / 15 + rng.normal(size=n), 0.2)
    columns["value"] = pc.if_else(pa.array(rng.random(n) < 0.1), None, value)
    carried = {name: telemetry.column(name) for name in CARRIED}
    return pa.RecordBatch.from_pydict(carried | columns | {"lo90": value, "hi90": value})


def prediction_rows() -> pa.RecordBatch:
    """Of three targets and two models, with values and without, in any order of time."""
    telemetry = batch(hostile())
    rng, n = np.random.default_rng(6), len(telemetry)
    words = {"target": ["soc", "soh", "rul", "soc"], "model_sha256": ["ab" * 32, "cd" * 32], "mode": ["live", "shadow"]}
    made = {
        name: pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, len(of), n).astype(np.int32)), pa.array(of))
        for name, of in words.items()
    }
    value = rng.choice(np.array([50.0, 0.0, np.inf, FLOAT32.max], np.float32), n)
    made |= {"value": pc.if_else(pa.array(rng.random(n) < 0.3), None, pa.array(value))}
    made |= {name: pa.nulls(n, pa.float32()) for name in ("lo90", "hi90")}
    made |= {name: pa.array(["x"] * n).dictionary_encode() for name in ("unit", "model_name", "model_version")}
    columns = [made.get(name) or telemetry.column(name) for name in PREDICTION.names]
    return pa.RecordBatch.from_arrays(
        [c.cast(f.type) for c, f in zip(columns, PREDICTION, strict=True)], schema=PREDICTION
    )


#: What comes in, by the word for it in the operator's documentation of ``up``.
INPUTS: dict[str, Callable[[], pa.RecordBatch]] = {
    "RAW": raw_rows,
    "TELEMETRY": lambda: batch(hostile()),
    "features": lambda: offline(batch(hostile()), KNOWN),
    "SOH": soh_rows,
    "PREDICTION": prediction_rows,
}


def documented(operator) -> dict[str, str]:
    """The sections of a docstring that is written in Google's style."""
    text = inspect.cleandoc(operator.__doc__)
    parts = re.split(r"^(Args|Returns|Raises|Example):\n", "About:\n" + text, flags=re.M)
    return {"About": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def rows_for(operator) -> pa.RecordBatch:
    up = re.search(r"^    up: (.*?)(?=^    \w+: |\Z)", documented(operator)["Args"], re.M | re.S)
    assert up, "Args says what comes in through up"
    words = [word for word in INPUTS if re.search(rf"\b{word}\b", up[1])]
    assert words, f"the documentation of up names one of {', '.join(INPUTS)}: {up[1]}"
    return INPUTS[words[0]]()


def keyed(operator) -> bool:
    hint = typing.get_type_hints(inspect.unwrap(operator))["up"]
    return "Tuple[str" in str(hint) or "tuple[str" in str(hint)


def items(operator, batches) -> list[Any]:
    """Batches as the operator takes them: as they are, or by shard."""
    if not keyed(operator):
        return list(batches)
    names = shard_names(2)
    return [(names[k], part) for rows in batches for k, part in split(rows, 2) or [(0, rows)]]


def streams(out) -> dict[str, Stream[Any]]:
    if dataclasses.is_dataclass(out) and not isinstance(out, Stream):
        return {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    return {"out": out}


def outcome(run_flow, operator, batches, *, workers=1, **given) -> dict[str, dict[str, bytes]]:
    """What comes out of each stream under each key, as bytes; rows in their order."""
    flow, sinks = Dataflow("conformance"), {}
    up = op.input("in", flow, TestingSource(items(operator, batches), batch_size=1))
    for name, stream in streams(operator("step", up, **arguments(operator, **given))).items():
        op.output(f"out-{name}", stream, TestingSink(sinks.setdefault(name, [])))
    run_flow(flow, workers=workers)
    found = defaultdict(list)
    for name, got in sinks.items():
        for item in got:
            key, rows = item if isinstance(item, tuple) else ("", item)
            rows.validate(full=True)
            found[f"{name} {key}"].append(rows)
    merged = {place: joined(parts) for place, parts in found.items() if sum(map(len, parts))}
    return {place: content(rows) for place, rows in merged.items()}


def test_the_operators_are_found():
    """The search finds what is exported, so it will find a new one."""
    assert {"decode.decode", "shard.shard", "quality.quality", "features.features", "estimate.estimate"} <= set(
        OPERATORS
    )


@pytest.mark.parametrize("place", sorted(OPERATORS))
def test_an_operator_has_a_test_file_of_its_own(place):
    assert (Path(__file__).parent / f"test_{place.split('.')[0]}.py").is_file()


def test_signature(operator):
    parameters = list(inspect.signature(operator).parameters.values())
    hints = typing.get_type_hints(inspect.unwrap(operator))
    assert parameters[0].name == "step_id" and hints["step_id"] is str
    positional = [p.name for p in parameters[1:] if p.kind is not p.KEYWORD_ONLY]
    assert positional and all(typing.get_origin(hints[name]) is Stream for name in positional)
    assert all(p.default is p.empty for p in parameters if p.name in ("step_id", *positional))
    assert {p.name for p in parameters} | {"return"} == set(hints)
    assert typing.Any not in hints.values()


def test_more_than_one_way_out_is_a_frozen_dataclass(operator):
    result = typing.get_type_hints(inspect.unwrap(operator))["return"]
    if typing.get_origin(result) is Stream:
        return
    assert dataclasses.is_dataclass(result) and result.__dataclass_params__.frozen
    assert all(typing.get_origin(hint) is Stream for hint in typing.get_type_hints(result).values())
    assert len(dataclasses.fields(result)) > 1 and result.__doc__


def test_documentation(operator):
    sections = documented(operator)
    assert sections["About"].removeprefix("About:\n").strip().splitlines()[0].endswith(".")
    named = re.findall(r"^    (\w+): ", sections["Args"], re.M)
    assert named == list(inspect.signature(operator).parameters)
    # What it keeps: how the rows that come out stand to those that go in.
    assert re.search(r"\b(one|once|no|each|same|order|stay)\b", sections["Returns"], re.I)


def test_no_rows_give_no_rows(operator, run_flow):
    rows = rows_for(operator).slice(0, 0)
    for workers in (1, 2):
        assert outcome(run_flow, operator, [rows, rows], workers=workers) == {}


@pytest.mark.parametrize("fleet", [KNOWN, Fleet()], ids=["fleet", "no fleet"])
def test_hostile_rows_raise_nothing_and_any_cut_and_two_workers_give_the_same_bytes(operator, run_flow, fleet):
    rows = rows_for(operator)
    assert len(rows) > 100
    whole = outcome(run_flow, operator, [rows], fleet=fleet)
    assert whole
    edges = np.random.default_rng(4).integers(0, len(rows), 25).tolist()
    assert outcome(run_flow, operator, cut(rows, edges), fleet=fleet) == whole
    assert outcome(run_flow, operator, cut(rows, edges), workers=2, fleet=fleet) == whole
    assert outcome(run_flow, operator, cut(rows, range(len(rows))), fleet=fleet) == whole


def test_one_row(operator, run_flow):
    rows = rows_for(operator)
    for k in range(0, len(rows), 20):
        one = [rows.slice(k, 1)]
        assert outcome(run_flow, operator, one) == outcome(run_flow, operator, one, workers=2)


def test_the_input_of_an_operator_is_left_alone(operator, run_flow):
    rows = rows_for(operator)
    before = content(rows)
    outcome(run_flow, operator, [rows])
    assert content(rows) == before


def builders(operator, monkeypatch) -> list[Callable[[Any], Any]]:
    """The functions by which the operator makes its states; none if it has no state."""
    found: list[Callable[[Any], Any]] = []
    stateful = op.stateful_batch

    def spy(step_id, up, builder):
        found.append(builder)
        return stateful(step_id, up, builder)

    monkeypatch.setattr(op, "stateful_batch", spy)
    flow = Dataflow("conformance")
    operator("step", op.input("in", flow, TestingSource([])), **arguments(operator))
    return found


def foreign(value) -> list[str]:
    """Types in a snapshot that are not builtins: their import path would be pickled with them."""
    if type(value) in (tuple, list):
        return [name for each in value for name in foreign(each)]
    if type(value) is dict:
        return [name for pair in value.items() for each in pair for name in foreign(each)]
    return [] if value is None or type(value) in (str, int, float, bool, bytes) else [type(value).__name__]


def plain(item) -> Any:
    """An item of a stream with its batches as bytes."""
    if isinstance(item, pa.RecordBatch):
        return content(item)
    return [plain(each) for each in item] if isinstance(item, (tuple, list)) else item


def emitted(logic, rows) -> list[Any]:
    out, discard = logic.on_batch([rows])
    assert discard is False
    return [plain(item) for item in out]


def test_a_snapshot_is_plain_and_a_restored_copy_goes_on_identically(operator, monkeypatch):
    rows = rows_for(operator)
    made = builders(operator, monkeypatch)
    assert made or "tateless" in operator.__doc__ or not keyed(operator), "state is kept by stateful_batch"
    for build in made:
        logic = build(None)
        assert foreign(logic.snapshot()) == []
        for first, part in enumerate(cut(rows, [1, 50, 200, 399])):
            snapshot = logic.snapshot()
            assert foreign(snapshot) == [] and re.fullmatch(r"v\d+", snapshot[0]), "the first element is the version"
            stored = pickle.dumps(snapshot)
            copy = build(pickle.loads(stored))
            assert copy.snapshot() == snapshot
            assert emitted(logic, part) == emitted(copy, part), f"differs in part {first}"
            assert logic.snapshot() == copy.snapshot()
            assert pickle.dumps(snapshot) == stored, "a snapshot is a copy, not a view of the state"


def test_a_new_operator_is_found_and_held_to_it(run_flow, monkeypatch, tmp_path):
    """The suite without a change: it finds a new file in the package and sees what is wrong with it."""
    (tmp_path / "novel.py").write_text(
        "import bytewax.operators as op\nimport pyarrow as pa\nfrom bytewax.dataflow import operator\n"
        "from bytewax.operators import KeyedStream\n\n"
        "@operator\ndef last(step_id: str, up: KeyedStream[pa.RecordBatch], size: int = 1) "
        "-> KeyedStream[pa.RecordBatch]:\n"
        '    """Keep the last rows.\n\n    Args:\n        step_id: Id.\n        up: ``TELEMETRY`` batches.\n\n'
        '    Returns:\n        The last row of each batch.\n    """\n'
        "    return op.map_value('last', up, lambda rows: rows.slice(len(rows) - 1))\n"
    )
    monkeypatch.setattr(voltmill.operators, "__path__", [*voltmill.operators.__path__, str(tmp_path)])
    try:
        novel = find_operators()["novel.last"]
    finally:
        monkeypatch.delitem(sys.modules, "voltmill.operators.novel", raising=False)
        monkeypatch.delattr(voltmill.operators, "novel", raising=False)
    with pytest.raises(AssertionError):
        test_signature(novel)  # size is not keyword-only
    with pytest.raises(AssertionError):
        test_documentation(novel)  # size is not documented
    with pytest.raises(AssertionError):
        test_hostile_rows_raise_nothing_and_any_cut_and_two_workers_give_the_same_bytes(novel, run_flow, KNOWN)
