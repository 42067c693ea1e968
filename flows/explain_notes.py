"""What a user must know beside the numbers: what was assumed, what cannot be made again, where to look."""

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from voltmill.flows.config import Config
from voltmill.flows.explain_models import Shelf, succeeds
from voltmill.flows.explain_origin import Origin
from voltmill.flows.explain_pass import Pass
from voltmill.flows.explain_stored import History, Prediction, Run
from voltmill.operators.contract import Contract


def notes_on(k: int, done: Pass, config: Config, origin: Origin, history: History, shelf: Shelf) -> Iterator[str]:
    """One line each on the ``k``-th prediction of a pass.

    Args:
        k: Its place in ``done.wanted``.
        done: The pass.
        config: What it was recomputed with.
        origin: Where the telemetry lies.
        history: The stored predictions.
        shelf: The models at hand.
    """
    p = done.wanted[k].prediction
    if shelf.get(p.model_sha256) is None:
        yield (
            f"not recomputed: the model {p.model_name} {p.model_version}, sha256 {p.model_sha256}, is not at hand: "
            "name its file with --model-file"
        )
    if k not in done.places:
        yield (
            f"no row of the archive {origin.lake.place} bears this source, partition and offset: it is not in a file "
            "yet, was removed, or was changed"
        )
    elif k not in done.found and shelf.get(p.model_sha256) is not None:
        yield "the archived row gives no such prediction with this configuration"
    yield from _on_failures(p, done, history, shelf)
    yield from _on_models(p, done, shelf)
    yield from _on_state(p, done, origin, config)
    made = done.found.get(k)
    if made is not None and origin.replay is None and _differs(p, made):
        yield (
            "if neither the row nor the prediction was changed: it was made with another [[fleet]], [quality], "
            "[features], [sessions] or [health] than the configuration has now, or by another version of voltmill"
        )


def _on_failures(p: Prediction, done: Pass, history: History, shelf: Shelf) -> Iterator[str]:
    if p.failed:
        spare = any(m.sha256 == p.model_sha256 for m in shelf.spares(p.target))
        what = f"the fallback model {p.model_name}" if spare else "coulomb counting, or null where there is none"
        yield (
            f"mode is fallback: the model failed here, and the value is by {what}; a failure that has passed cannot "
            "be made again, so the model was taken to fail on the rows where the lake says that it did"
        )
    before = history.failures(p.target, p.model_sha256, counts=p.mode != "shadow" and history.counting(p.model_sha256))
    count = int((before[:, 0] < _micros(p.event_time)).sum())
    if count:
        yield f"the model failed on {count} rows of the device before this one; it was taken to fail on them again"


def _on_models(p: Prediction, done: Pass, shelf: Shelf) -> Iterator[str]:
    lane = [r for r in done.runs if (r.target, r.name) == (p.target, p.model_name)]
    files = _files(lane)
    mine, model = [r for r in files if r.sha256 == p.model_sha256], shelf.get(p.model_sha256)
    for run in files:
        if run.sha256 == p.model_sha256 or not any(succeeds(r, run) for r in mine):
            continue  # itself, or another one of its name that ran beside it
        old = shelf.get(run.sha256)
        until = f"{p.model_name} was another file until {_time(run.last_time)}, sha256 {run.sha256}"
        passed_on = _passed_on(model.contract, old.contract if old else None) if model else []
        yield f"{until}: {'; '.join(passed_on)}" if passed_on else until
    for run in done.runs:
        model = shelf.get(run.sha256)
        if model is not None and model.remote:
            yield f"{run.name} is asked over a network: its answer of today was taken"
    yield from _on_counts(p, lane, done)


def _files(lane: list[Run]) -> list[Run]:
    """The runs of a lane, those of one file joined that go on from each other in another mode."""
    found: list[Run] = []
    for run in lane:
        before = next((r for r in reversed(found) if r.sha256 == run.sha256), None)
        if before is None or any(r.sha256 != run.sha256 and before.last_time < r.last_time < run.time for r in lane):
            found.append(msgspec.structs.replace(run))
        else:
            before.last_time = max(before.last_time, run.last_time)
    return found


def _passed_on(new: Contract, old: Contract | None) -> list[str]:
    """What became of a device's state when a file took over: see ``Lane.restore``; ``old`` None: not at hand."""
    found: list[str] = []
    if new.kind != "features":
        found.append(f"a {new.kind} model begins anew under another file, and so it did here")
    if new.fusion is None:
        return found or ["this one keeps no state, so nothing went over"]
    if old is None:
        found.append(
            "it is not at hand, and the filter went on from its state if it had one, so bits may differ for a while: "
            "name its file with --model-file"
        )
    elif old.fusion is None:
        found.append("it had no filter, so the filter began anew, and so it did here")
    else:
        found.append("the filter went on from its state, and so it did here")
    return found


def _on_counts(p: Prediction, lane: list[Run], done: Pass) -> Iterator[str]:
    if done.cast.table_of(p.model_sha256) != "features":
        return
    stored = sum(run.rows for run in lane if run.sha256 == p.model_sha256)
    made = done.made.get((p.target, p.model_sha256), 0)
    if made > stored and not done.late and not done.replayed:
        yield (
            f"the lake holds {stored} predictions of this model up to here, recomputed were {made}: it was not in "
            "force all the time, or predictions were removed; where it was not, its state began anew"
        )


def _on_state(p: Prediction, done: Pass, origin: Origin, config: Config) -> Iterator[str]:
    if not done.replayed and len(done.stores) > 1 and done.stores[-1] == done.store:
        yield f"state began anew with the recovery store {done.store}: rows of {done.stores[-2]} and older do not count"
    if done.cut:
        yield (
            f"the archive of {done.store} begins with file number {done.cut}: older rows are gone, so state began "
            "colder here than it did then"
        )
    if done.late:
        yield "older predictions are gone: the model was taken to be in force from the first row on"
    plan = origin.replay
    if plan is not None and plan.start is not None:
        yield f"made by a replay from {_iso(plan.start)}, warmed up for {plan.warm_up_seconds:g} s, as here"
    for difference in origin.differences(config):
        yield f"of the replay that made it, {difference}"


def _differs(p: Prediction, made: Prediction) -> bool:
    return (p.value, p.lo90, p.hi90, p.quality_bits) != (made.value, made.lo90, made.hi90, made.quality_bits)


def _micros(time: datetime) -> int:
    return round(time.timestamp() * 1e6)


def _time(micros: int) -> str:
    return _iso(datetime.fromtimestamp(micros / 1e6, UTC))


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
