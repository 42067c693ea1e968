"""A model behind HTTP, at its best a real-time endpoint of Azure ML.

``predict`` blocks. It cuts a batch into requests, sends several at the same time, sends again what may
have failed by chance, and gives up when the deadline is over. An endpoint that failed wholly is left
alone for a while, in which calls fail at once: a dead endpoint must not slow the stream down.
What goes over the wire is in ``endpoint_wire``, what each failure means in ``endpoint_errors``.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from voltmill.connectors import endpoint_wire as wire
from voltmill.connectors.breaker import Breaker
from voltmill.connectors.endpoint_client import EndpointClient
from voltmill.connectors.endpoint_errors import EndpointError
from voltmill.connectors.endpoint_settings import EndpointSettings

__all__ = ["EndpointError", "EndpointModel", "EndpointSettings"]

Array = npt.NDArray[np.float32]

#: Bytes of an answer: some for itself, and so many for each number in it (the longest float64 has 24).
_ANSWER_BYTES, _NUMBER_BYTES = 65_536, 64

log = logging.getLogger("voltmill.endpoint")


class Asked(Protocol):
    """What must be known of the contract of a model to ask it."""

    @property
    def kind(self) -> str:
        """``features`` or ``window``."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""

    @property
    def window_rows(self) -> int:
        """Rows in a window; 0 for the kind features."""


C_co = TypeVar("C_co", bound=Asked, covariant=True)


class EndpointModel(Generic[C_co]):
    """A model that is asked over HTTP; it may be asked from several threads.

    Args:
        settings: where it is, and how patiently it is asked.
        contract: what it takes and gives.
        contract_text: the file that the contract was read from, as it is: part of the model's identity.
        observe: called for each request with its outcome and its seconds, from any thread. Outcomes: ``ok``, the
            status, ``timeout``, ``connection``, ``answer`` (one that cannot be used).
        on_retry: called with the outcome of each request that is sent again.
        on_open: called with True when the endpoint is given up for a while, and with False when it is back.

    Raises:
        EndpointError: the kind of model cannot be asked over HTTP, or ``ca_file`` cannot be used.
    """

    #: Asked over a network: whoever computes in a stream asks it in a thread of its own.
    remote: Final = True

    def __init__(
        self,
        settings: EndpointSettings,
        contract: C_co,
        contract_text: bytes,
        *,
        observe: Callable[[str, float], None] = lambda outcome, seconds: None,
        on_retry: Callable[[str], None] = lambda outcome: None,
        on_open: Callable[[bool], None] = lambda is_open: None,
    ) -> None:
        if contract.kind not in ("features", "window"):
            text = f'a model of kind "{contract.kind}" cannot be asked over HTTP: make it of kind features or window'
            raise EndpointError(settings, text, outcome="contract")
        self.contract = contract
        # Neither the key nor the patience: a model does not become another by them.
        parts = (contract_text, settings.url.encode(), settings.deployment.encode())
        digests = (hashlib.sha256(part).digest() for part in parts)
        self.sha256: str = hashlib.sha256(b"".join(digests)).hexdigest()
        self._settings, self._on_open = settings, on_open
        self._client = EndpointClient(settings, observe=observe, on_retry=on_retry)
        self._breaker = Breaker(settings.pause_seconds, settings.longest_pause_seconds, on_open=self._changed)
        self._threads = ThreadPoolExecutor(settings.concurrency, "voltmill-endpoint")
        self._batch_rows = settings.batch_rows
        self._last = ""

    def __repr__(self) -> str:
        """Where it is: no secret in it."""
        return f"EndpointModel({self._settings.place})"

    def predict(self, features: Array) -> Array:
        """Outputs for a feature matrix, within ``deadline_seconds``.

        Args:
            features: float32 (rows, n features), physical units, in the contract's order; for the kind
                window (rows, window rows, n features), oldest first. NaN: not known.

        Returns:
            float32 (rows, n outputs); NaN where the endpoint gave no number, and for a row with an infinite
            feature, which JSON cannot say.

        Raises:
            EndpointError: for some of the rows there is no answer.
        """
        if not len(features):
            return np.empty((0, len(self.contract.outputs)), np.float32)
        if not self._breaker.admits():
            raise self._held_back()
        probes = self._breaker.is_open
        try:
            outputs = self._ask(features, 1 if probes else self._settings.attempts)
        except EndpointError as error:
            self._settle(error)
            raise
        except BaseException as error:  # none of ours, but what was admitted must be settled
            self._last = f"{type(error).__name__} while it was asked"
            self._breaker.failed()
            raise
        self._settle(None)
        outputs[np.isinf(features).any(axis=tuple(range(1, features.ndim)))] = np.nan
        return outputs

    def close(self) -> None:
        """End the waits and close the connections; a call that is under way ends within ``timeout_seconds``."""
        self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, features: Array, attempts: int) -> Array:
        deadline = time.monotonic() + self._settings.deadline_seconds
        size = self._batch_rows
        cuts = [features[start : start + size] for start in range(0, len(features), size)]
        asked = [self._threads.submit(self._rows, part, deadline, attempts) for part in cuts]
        try:
            # The threads keep to the deadline too, but for an answer whose headers drip in byte by byte.
            done, _ = wait(asked, deadline - time.monotonic() + 0.1, FIRST_EXCEPTION)
            _raise_first(asked)
            if len(done) < len(asked):
                raise EndpointError(self._settings, "no answer in time: is it up?", outcome="timeout")
            return np.concatenate([future.result() for future in asked])
        finally:
            for future in asked:
                future.cancel()

    def _rows(self, features: Array, deadline: float, attempts: int) -> Array:
        """One request, or two halves of it where the endpoint finds it too large."""
        rows, width = len(features), len(self.contract.outputs)
        body = wire.request(self.contract.feature_names, features)
        most = _ANSWER_BYTES + rows * width * _NUMBER_BYTES
        try:
            found = self._client.post(body, most_bytes=most, deadline=deadline, attempts=attempts)
        except EndpointError as error:
            if error.outcome != "413" or rows == 1:
                raise
            half = (rows + 1) // 2
            self._batch_rows = min(self._batch_rows, half)
            log.warning("%s finds %d rows too large: it gets %d from now on", self._settings.place, rows, half)
            return np.concatenate([self._rows(part, deadline, attempts) for part in (features[:half], features[half:])])
        try:
            return wire.read_answer(found, rows, width)
        except wire.WireError as error:
            text = f"gives no answer of the contract: {error}: compare its scoring script with it"
            raise EndpointError(self._settings, text, outcome="answer", away=False) from error

    def _settle(self, error: EndpointError | None) -> None:
        """Tell the breaker how the call ended."""
        if error is not None and error.away:
            self._last = str(error)
            self._breaker.failed(error.retry_after)
        else:
            self._breaker.succeeded()

    def _changed(self, is_open: bool) -> None:
        if is_open:
            log.warning("%s; it is left alone for %.1f s", self._last, self._breaker.remaining)
        else:
            log.info("endpoint %s is back", self._settings.place)
        self._on_open(is_open)

    def _held_back(self) -> EndpointError:
        text = f"is left alone for {self._breaker.remaining:.1f} s more, since: {self._last}"
        return EndpointError(self._settings, text, outcome="held_back")


def _raise_first(asked: Sequence[Future[Array]]) -> None:
    """Raise what one of the threads raised, if one did."""
    for future in asked:
        if future.done() and (error := future.exception()) is not None:
            raise error
