"""The steps of a flow against the steps whose state its recovery store holds.

Bytewax finds state by the step's id and says nothing where a step of another id begins without, nor
where state is left that no step asks for. Here nothing of that happens silently.
"""

import logging
from pathlib import Path
from typing import Final

from bytewax.dataflow import Dataflow, Operator

from voltmill import __version__
from voltmill.flows.config import ConfigError, RunSettings
from voltmill.flows.recovery import partitions, read, steps_with_state

#: Operators of Bytewax that have state.
_STATEFUL: Final = ("input", "output", "stateful_batch")

#: Steps of models: one for each table of rows. Those of 0.1 bore a model's name and digest, and begin anew.
_MODELS: Final = "voltmill.estimate-"

#: Steps that a setting adds and takes away, and whose state holds no rows: what was last thinned out.
_OPTIONAL: Final = ("voltmill.thin-",)

#: Steps of former versions, whose state held nothing: the SQL sink of 0.1.
_RETIRED: Final = ("voltmill.predictions-1",)

log = logging.getLogger("voltmill.recovery")


def stateful_steps(flow: Dataflow) -> set[str]:
    """The ids under which the steps of a flow keep state."""
    found, to_see = set[str](), list[Operator](flow.substeps)
    while to_see:
        step = to_see.pop()
        to_see += step.substeps
        if type(step).__name__ in _STATEFUL:
            found.add(step.step_id)
    return found


def check_steps(settings: RunSettings, flow: Dataflow) -> None:
    """Compare the flow with the store that ``open_store`` opened, before it runs.

    A model that is new begins with a filter of its own. The state of a model that is gone is removed:
    should the model come back some day, it must not go on from a charge of that time.

    Raises:
        ConfigError: The store holds state of another step that the flow does not have: rows not yet in
            the lake, for example, would be lost.
    """
    folder = Path(settings.state)
    had, has = steps_with_state(folder).keys(), stateful_steps(flow)
    if not had:
        return
    gone = sorted(had - has)
    if lost := [step for step in gone if not step.startswith((_MODELS, *_OPTIONAL)) and step not in _RETIRED]:
        info = read(folder)
        raise ConfigError(
            f"{folder}: holds state of {', '.join(lost)}, which this flow of voltmill {__version__} does not have: "
            f"run the version that made it ({info.run_by or 'before 0.2'}), or name another [run] state"
        )
    if new := sorted(step for step in has - had if step.startswith(_MODELS)):
        log.info("models begin anew", extra={"steps": new})
    if gone:
        log.warning("state of former steps removed", extra={"steps": gone})
        partitions("drop", folder, *gone)
