"""How kernels are compiled: ahead of nothing, cached on disk, and never stale.

Numba's own cache looks only at the file a function stands in; a kernel that inlines a function of
another file would keep running the old one. So the cache folder bears a digest of all the kernels.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def _cache_dir() -> Path:
    digest = hashlib.sha256(numba.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for base in (os.environ.get("NUMBA_CACHE_DIR"), os.path.join(home, "voltmill")):
        if base:
            path = Path(base) / digest.hexdigest()[:16]
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            if os.access(path, os.W_OK):
                return path
    return Path(tempfile.mkdtemp(prefix="voltmill-kernels-"))  # read-only home: compile each time


#: Where the compiled kernels lie. Set before the first kernel is made.
CACHE_DIR: Final = _cache_dir()
numba.config.CACHE_DIR = str(CACHE_DIR)


def kernel(function: F) -> F:
    """Compile with numba: cached, without the GIL, IEEE arithmetic in the order it is written.

    ``fastmath`` stays off: a result must not depend on how a loop was vectorised.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inline(function: F) -> F:
    """Compile a small function that is only called from kernels."""
    return cast(F, numba.njit(inline="never", nogil=True, error_model="numpy")(function))
