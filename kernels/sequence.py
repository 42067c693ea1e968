"""Rows of a batch in the order of their devices: which belong together, and what came before each."""

import numpy as np
import numpy.typing as npt

from voltmill.kernels.compile import kernel


@kernel
def ranks(slots: npt.NDArray[np.int32], counts: npt.NDArray[np.int32], rank: npt.NDArray[np.int32]) -> int:
    """How many rows of the same device stand before each row.

    Rows of one rank are of different devices, so a model with memory can be asked about them at once.

    Args:
        slots: (rows,) slot of the row's device.
        counts: (slots,) zeros, one element a slot; zeros again on return.
        rank: (rows,) out.

    Returns:
        The highest rank and 1: how often a model must be asked; 0 without rows.
    """
    most = 0
    for i in range(slots.shape[0]):
        k = slots[i]
        rank[i] = counts[k]
        counts[k] += 1
        most = max(most, counts[k])
    for i in range(slots.shape[0]):
        counts[slots[i]] = 0
    return most


@kernel
def carry_restarts(
    pending: npt.NDArray[np.bool_],
    slots: npt.NDArray[np.int32],
    restarts: npt.NDArray[np.bool_],
    asked: npt.NDArray[np.bool_],
) -> None:
    """Move each restart on to the first row from it on that a model is asked about.

    Args:
        pending: (slots,) devices whose restart no asked row has borne yet; changed in place.
        slots: (rows,) slot of the row's device.
        restarts: (rows,) whether what came before says nothing any more; changed in place.
        asked: (rows,) whether the model is asked about the row.
    """
    for i in range(slots.shape[0]):
        k = slots[i]
        pending[k] |= restarts[i]
        restarts[i] = False
        if asked[i]:
            restarts[i] = pending[k]
            pending[k] = False


@kernel
def windows(
    kept: npt.NDArray[np.float32],
    filled: npt.NDArray[np.int32],
    slots: npt.NDArray[np.int32],
    restarts: npt.NDArray[np.bool_],
    features: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    full: npt.NDArray[np.bool_],
) -> None:
    """Append rows to the windows of their devices, in row order, and give each row's window.

    Args:
        kept: (slots, window rows, features) the last rows of each device, oldest first; changed in place.
        filled: (slots,) how many of them there are, at the end; changed in place.
        slots: (rows,) slot of the row's device.
        restarts: (rows,) whether what came before says nothing any more: the window begins anew.
        features: (rows, features).
        out: (rows, window rows, features) out: the window that ends with the row.
        full: (rows,) out: whether it holds as many rows as it should.
    """
    length = kept.shape[1]
    for i in range(slots.shape[0]):
        k = slots[i]
        if restarts[i]:
            filled[k] = 0
        for row in range(length - 1):
            kept[k, row] = kept[k, row + 1]
        kept[k, length - 1] = features[i]
        filled[k] = min(filled[k] + 1, length)
        out[i] = kept[k]
        full[i] = filled[k] == length
