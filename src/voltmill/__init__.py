"""voltmill: battery telemetry to state of charge, health and alerts, as a stream.

The code lives in four layers, each importing only what stands to its right:
``voltmill.flows`` > ``voltmill.operators``, ``voltmill.connectors`` > ``voltmill.kernels``.
"""

import logging
from importlib.metadata import version

__version__ = version("voltmill")

# Who uses the package without logging set up is spared the bare messages that Python would print then.
logging.getLogger("voltmill").addHandler(logging.NullHandler())
