"""Whether the inputs and outputs of an ONNX file are what its contract says, and how to mend what is not.

Models come from many exporters; each has its habits, and the lines here name the option that changes them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from voltmill.operators.contract import Contract

_FLOAT: Final = "tensor(float)"
#: What onnxruntime calls a type -> what it is, and what to do about it.
_TYPES: Final = {
    "tensor(double)": "float64: export it as float32 (skl2onnx: give to_onnx X.astype(numpy.float32); PyTorch: "
    "model.float())",
    "tensor(float16)": "float16: export it as float32 (PyTorch: model.float())",
    "tensor(bfloat16)": "bfloat16: export it as float32 (PyTorch: model.float())",
    "tensor(int64)": "whole numbers (int64), as the labels of a classifier are: export a regressor, or cast to float32",
    "tensor(string)": "text: a model takes and gives numbers; leave the encoding of categories to training",
}


def shape_problems(inputs: Sequence[Any], outputs: Sequence[Any], contract: Contract | None) -> list[str]:
    """One line for each thing that is wrong with the inputs and outputs.

    Args:
        inputs: of the onnxruntime session.
        outputs: the same.
        contract: None: only what is right under no contract is found.
    """
    found = [line for node in inputs for line in _of_node("input", node)]
    # An output that is like the inputs changes with them.
    types, free = {node.type for node in inputs}, not any(_rows_fixed(node) for node in inputs)
    for node in outputs:
        found += _of_node("output", node, type_=node.type not in types, rows=free)
    if contract is not None:
        found += _of_side("input", inputs, wanted_inputs(contract), contract)
        found += _of_side("output", outputs, wanted_outputs(contract), contract)
    return found


def wanted_inputs(contract: Contract) -> list[tuple[int, ...]]:
    """The shape of a row of each input."""
    n = len(contract.features)
    row = (contract.window_rows, n) if contract.kind == "window" else (n,)
    return [row, (contract.state_size,)] if contract.kind == "step" else [row]


def wanted_outputs(contract: Contract) -> list[tuple[int, ...]]:
    """The shape of a row of each output."""
    row = (len(contract.outputs),)
    return [row, (contract.state_size,)] if contract.kind == "step" else [row]


def row_shape(node: Any) -> tuple[int | None, ...]:
    """The dimensions after the first, None where the file leaves them open."""
    return tuple(d if isinstance(d, int) else None for d in node.shape[1:])


def shape_text(shape: Sequence[Any]) -> str:
    """A shape for people: ``(rows, 5, 15)``."""
    return f"({', '.join(['rows', *('?' if d is None else str(d) for d in shape)])})"


def _rows_fixed(node: Any) -> bool:
    return bool(node.shape) and isinstance(node.shape[0], int)


def _of_node(side: str, node: Any, *, type_: bool = True, rows: bool = True) -> Iterator[str]:
    if type_ and node.type != _FLOAT:
        yield f'{side} "{node.name}" is {_TYPES.get(node.type, f"{node.type}: {_FLOAT} is wanted")}'
    if rows and _rows_fixed(node):
        axes = f'dynamic_axes={{"{node.name}": {{0: "rows"}}}}'
        yield (
            f'{side} "{node.name}" is of exactly {node.shape[0]} rows: export it with the first dimension free '
            f"(torch.onnx.export: dynamic_shapes, or {axes}; skl2onnx: FloatTensorType([None, ...]))"
        )


def _of_side(side: str, nodes: Sequence[Any], wanted: list[tuple[int, ...]], contract: Contract) -> Iterator[str]:
    if len(nodes) != len(wanted):
        yield _count(side, nodes, wanted, contract)
        return
    for node, shape in zip(nodes, wanted, strict=True):
        if node.shape and not _fits(row_shape(node), shape):
            yield (
                f'{side} "{node.name}" is {shape_text(row_shape(node))}: the contract says {shape_text(shape)} '
                f"({_reason(side, node is nodes[0], contract)}){_mend(side, node, shape, contract)}"
            )


def _fits(found: tuple[int | None, ...], wanted: tuple[int, ...]) -> bool:
    """A dimension that the file leaves open is settled by a run."""
    return len(found) == len(wanted) and all(f in (None, w) for f, w in zip(found, wanted, strict=True))


def _count(side: str, nodes: Sequence[Any], wanted: list[tuple[int, ...]], contract: Contract) -> str:
    names = ", ".join(f'"{node.name}"' for node in nodes[:6]) + (", ..." if len(nodes) > 6 else "")
    line = (
        f"{len(nodes)} {side}{'' if len(nodes) == 1 else 's'} ({names}): the kind {contract.kind} has {len(wanted)}, "
        + " and ".join(map(shape_text, wanted))
    )
    if contract.kind != "step" and len(nodes) == 2:
        return f'{line}; if the second is state that is carried on, set kind = "step" and state_size'
    if side == "input" and len(nodes) > 2:
        return f"{line}: export it from an array of all columns rather than from a data frame"
    if side == "output" and len(nodes) > len(wanted):
        return f"{line}: join them into one (Concat along axis 1), or export only what the contract names"
    return line


def _reason(side: str, first: bool, contract: Contract) -> str:
    if not first:
        return f"state_size {contract.state_size}"
    if side == "output":
        return f"outputs {', '.join(contract.outputs)}"
    rows = f"{contract.window_rows} rows of " if contract.kind == "window" else ""
    return f"{rows}{len(contract.features)} features"


def _mend(side: str, node: Any, wanted: tuple[int, ...], contract: Contract) -> str:
    found = row_shape(node)
    if side == "input" and contract.kind == "features" and len(found) == 2:
        return f': set kind = "window" and window_rows = {found[0] or "..."}'
    if side == "input" and contract.kind == "window" and len(found) == 1:
        return ': set kind = "features" and window_rows = 0, or export it for windows'
    if len(found) != len(wanted):
        return f": reshape it in the model to {shape_text(wanted)}"
    return ": one of the two is wrong"
