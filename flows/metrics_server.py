"""What the metrics of every kind of flow can do: be served over HTTP, and say what is waited for."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, start_http_server


class Served:
    """Metrics of one process, in a registry of their own.

    Attributes:
        registry: what is served.
        waits: by system, whether it is waited for.
    """

    waits: Gauge

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def serve(self, host: str, port: int) -> None:
        """Serve the metrics over HTTP, in a thread."""
        try:
            start_http_server(port, addr=host, registry=self.registry)
        except OSError as e:
            raise OSError(f"[run] metrics: {host}:{port} cannot be served: {e.strerror or e}") from e

    def waiting(self, system: str) -> Callable[[bool], None]:
        """What is called with True when a wait for a system begins, with False when it is over."""
        gauge = self.waits.labels(system)
        return lambda waiting: gauge.set(float(waiting))
