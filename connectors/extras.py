"""Packages that only some deployments need: the one place that says which is missing and how to get it."""

import importlib
from types import ModuleType


class MissingExtra(RuntimeError):
    """A package that the configuration asks for is not installed; one line that says how to install it."""


def need(module: str, what: str, extra: str = "azure") -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name.
        what: who asks for it, as the error names it.
        extra: the extra of voltmill that brings it.

    Raises:
        MissingExtra: it, or a package that it needs, is not installed.

    Example:
        >>> need("no_such.module", "reading IoT Hub")
        Traceback (most recent call last):
        voltmill.connectors.extras.MissingExtra: reading IoT Hub needs no_such.module: pip install 'voltmill[azure]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        missing = module if module.startswith(f"{missing}.") else missing  # all of "azure" is no package's name
        raise MissingExtra(f"{what} needs {missing}: pip install 'voltmill[{extra}]'") from error
