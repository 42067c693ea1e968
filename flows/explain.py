"""explain: any stored prediction made anew from the archive, and whether the bits agree.

The rows of the device are read in order of arrival, from the first that the state of that time could know up
to the one that the prediction names, and go through the stages of the graph (``flows/stages.py``) with the
models that the lake says were in force. Memory does not grow with the rows.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from voltmill.flows.config import Config
from voltmill.flows.explain_inputs import inputs_of
from voltmill.flows.explain_models import Shelf
from voltmill.flows.explain_notes import notes_on
from voltmill.flows.explain_origin import origin_of
from voltmill.flows.explain_pass import Pass
from voltmill.flows.explain_result import Explained, Explanation, agreement, bits_in_words
from voltmill.flows.explain_stored import read_history

__all__ = ["Explained", "Explanation", "explain"]


def explain(
    config: Config,
    lake: str,
    device_id: str,
    time: datetime,
    *,
    telemetry: str = "",
    target: str = "",
    model: str = "",
    files: Iterable[Path] = (),
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Explanation:
    """Recompute the predictions of a device at a time, or at the nearest time before it that has one.

    Args:
        config: Fleet, thresholds and models, as they were.
        lake: Folder or URL that holds ``predictions/``.
        device_id: The device.
        time: Event time.
        telemetry: Folder or URL that holds ``telemetry/``, or ``sessions/`` where a replay of these made the
            predictions; empty: what the replay read, else the same lake.
        target: Only this one; empty: any.
        model: Only predictions by a model of this name, or whose digest begins so; empty: any.
        files: ONNX files of models that are no longer in force.
        on_progress: Called with the rows recomputed so far.

    Raises:
        ConfigError: A model of the configuration cannot be used.
        LakeError: There are no predictions, no telemetry, or a file cannot be read.
        ModelError: A file cannot be used.
    """
    shelf = Shelf(config, files)
    settings = msgspec.structs.replace(config.lake, url=lake)
    history = read_history(settings, device_id, time, target=target, model=model)
    origin = origin_of(settings, telemetry)
    explained: list[Explained] = []
    for store in dict.fromkeys(each.store for each in history.found):
        wanted = [each for each in history.found if each.store == store]
        done = Pass(config, origin, history, shelf, wanted, on_progress)
        for k in range(len(wanted)):
            notes = list(notes_on(k, done, config, origin, history, shelf))
            explained.append(_explained(k, done, config, shelf, notes))
    at = history.found[0].prediction.event_time if history.found else None
    return Explanation(device_id=device_id, asked=time.astimezone(UTC), time=at, predictions=explained)


def _explained(k: int, done: Pass, config: Config, shelf: Shelf, notes: list[str]) -> Explained:
    stored, made = done.wanted[k], done.found.get(k)
    model = shelf.get(stored.prediction.model_sha256)
    table, row = done.asked.get(k, ("", None))
    file, number = done.places.get(k, ("", -1))
    return Explained(
        stored=stored,
        recomputed=made,
        agree=agreement(stored.prediction, made) if made else {},
        table=table,
        inputs=inputs_of(model.contract, row, config) if model and row is not None else [],
        bits=bits_in_words(stored.prediction.quality_bits),
        file=file,
        row=number,
        rows=done.rows,
        notes=notes,
    )
