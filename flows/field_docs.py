"""The docstrings below the fields of a struct, for templates and for the documentation: one text in one place."""

import ast
import inspect

import msgspec


def field_docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string literal below each field of a struct, on one line; empty where there is none.

    Example:
        >>> from voltmill.operators.contract import Range
        >>> field_docs(Range)["name"]
        'Column of the table.'
    """
    source = ast.parse(inspect.getsource(struct)).body[0]
    assert isinstance(source, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(source.body, [*source.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = ""
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                text = plain(str(below.value.value))
            docs[field.target.id] = text
    return docs


def plain(text: str) -> str:
    """A docstring as Markdown on one line."""
    return " ".join(text.replace("``", "`").split())
