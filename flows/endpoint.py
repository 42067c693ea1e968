"""Opens a model behind HTTP: its contract is read here, for connectors know nothing of contracts."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from voltmill.connectors.endpoint import EndpointError, EndpointModel, EndpointSettings
from voltmill.operators.model import Contract, ModelError


def open_endpoint(
    settings: EndpointSettings,
    *,
    observe: Callable[[str, float], None] = lambda outcome, seconds: None,
    on_retry: Callable[[str], None] = lambda outcome: None,
    on_open: Callable[[bool], None] = lambda is_open: None,
) -> EndpointModel[Contract]:
    """The model of a ``[model.endpoint]`` table. Nothing is sent yet.

    Args:
        settings: where it is, and the file with its contract.
        observe: called for each request with its outcome and its seconds, from any thread: see `EndpointModel`.
        on_retry: called with the outcome of each request that is sent again.
        on_open: called with True when the endpoint is given up for a while, and with False when it is back.

    Raises:
        ModelError: the contract or a file of certificates cannot be used; says why in one line.
    """
    try:
        text = Path(settings.contract).read_bytes()
    except OSError as e:
        raise ModelError(f"{settings.contract}: cannot be read ({e.strerror}): name the contract of the model") from e
    try:
        contract = msgspec.json.decode(text, type=Contract)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"{settings.contract}: no contract: {e}") from e
    try:
        return EndpointModel(settings, contract, text, observe=observe, on_retry=on_retry, on_open=on_open)
    except EndpointError as e:
        raise ModelError(str(e)) from e
