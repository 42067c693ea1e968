"""Which model answers for which device: decided once for each fleet entry, not for each row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.operators.contract import Contract
from voltmill.operators.model import Chosen

Flags = NDArray[np.bool_]


class Share(NamedTuple):
    """Which rows are a model's, by index of the fleet entry; the last element answers for the device of no entry."""

    rows: Flags
    """It gives a prediction for them."""
    known: Flags
    """It was made for them; else the prediction is null."""
    first: Flags
    """No model before it counts for them."""


def serves(contract: Contract, entry: FleetEntry) -> bool:
    """Whether a model was made for the devices of a fleet entry, and the entry does not choose others."""
    made_for = contract.cell_type in ("*", entry.cell_type)
    return made_for and (entry.models is None or contract.name in entry.models)


def share_out(models: Sequence[Chosen], fleet: Fleet) -> list[Share]:
    """The share of each model, in their order.

    A sample of a device that no model of a target was made for is the first model's of that target, so that a
    null prediction says so; sessions and health rows of such a device have no prediction.
    """
    knows = [_knows(each.model.contract, fleet) for each in models]
    counted: dict[str, Flags] = {}
    told, shares = set[str](), []
    for (model, mode), known in zip(models, knows, strict=True):
        target, nobody = model.contract.target, np.zeros_like(known)
        if mode == "fallback":
            shares.append(Share(known, known, nobody))
            continue
        rows = known
        if model.contract.table == "features" and target not in told:
            told.add(target)
            rows = known | ~_served(target, models, knows)
        if mode == "shadow":
            shares.append(Share(rows, known, nobody))
            continue
        before = counted.get(target, nobody)
        shares.append(Share(rows, known, known & ~before))
        counted[target] = known | before
    return shares


def unserved(shares: Sequence[Share], fleet: Fleet) -> Flags:
    """Fleet entries, and last the devices of no entry, that no model was made for."""
    nobody = np.ones(len(fleet.entries) + 1, np.bool_)
    for share in shares:
        nobody &= ~share.known
    return nobody


def _knows(contract: Contract, fleet: Fleet) -> Flags:
    return np.array([*(serves(contract, entry) for entry in fleet.entries), False])


def _served(target: str, models: Sequence[Chosen], knows: Sequence[Flags]) -> Flags:
    """Whom any model of a target serves, fallback models left out: they never answer alone."""
    served = np.zeros_like(knows[0])
    for (model, mode), known in zip(models, knows, strict=True):
        if mode != "fallback" and model.contract.target == target:
            served |= known
    return served
