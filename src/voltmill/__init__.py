"""voltmill: battery telemetry to state of charge, health and alerts, as a stream.

The code lives in four layers, each importing only what stands to its right:
``voltmill.flows`` > ``voltmill.operators``, ``voltmill.connectors`` > ``voltmill.kernels``.
"""

from importlib.metadata import version

__version__ = version("voltmill")
