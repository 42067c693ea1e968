"""The engine's panics, kept off standard error: an error is one line, not Rust's backtrace as well.

Bytewax carries a Python exception through Rust as a panic, and Rust's runtime writes of each panic,
with ``RUST_BACKTRACE`` set a hundred lines, before the exception comes out at the other end. Those lines
are dropped; everything else on file descriptor 2, real panics of Rust code too, passes.
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

_PANIC: Final = re.compile(rb"thread '.*' panicked at ")
#: What stands for a message where the panic carries an exception.
_CARRIED: Final = b"Box<dyn Any>"
_TRACE: Final = re.compile(rb"stack backtrace:|\s+\d+: |\s+at |note: |\s*$")
_FLUSH_SECONDS: Final = 2.0


@contextmanager
def hidden(log: logging.Logger) -> Iterator[None]:
    """Drop the panics that carry an exception while the engine runs.

    Python's own lines do not take the detour: they go where they went, at once.

    Args:
        log: The logger whose handlers write to standard error.
    """
    real = os.dup(2)
    read, write = os.pipe()
    before, direct = sys.stderr, os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace")
    ours = _on_stderr(before)
    if ours:
        _switch(log, before, direct)
    os.dup2(write, 2)
    os.close(write)
    passing = threading.Thread(target=_pass_on, args=(read, real), daemon=True, name="panics")
    passing.start()
    try:
        yield
    finally:
        os.dup2(real, 2)  # the last end to write to the pipe: the thread sees its end
        if ours:
            _switch(log, direct, before)
        direct.close()
        passing.join(_FLUSH_SECONDS)  # a child process may hold the pipe still


def without_panics(lines: Iterator[bytes]) -> Iterator[bytes]:
    r"""The lines but those of panics that carry an exception.

    Example:
        >>> rust = [b"thread 'x' panicked at src/run.rs:1:1:\n", b"Box<dyn Any>\n", b"note: run with\n", b"ours\n"]
        >>> list(without_panics(iter(rust)))
        [b'ours\n']
    """
    held, dropping = b"", False
    for line in lines:
        if held:
            dropping = line.strip() == _CARRIED
            if not dropping:
                yield held
            held = b""
            if dropping:
                continue
        if dropping and _TRACE.match(line):
            continue
        dropping = False
        if _PANIC.match(line):
            held = line
        else:
            yield line
    if held:
        yield held


def _pass_on(read: int, to: int) -> None:
    with os.fdopen(read, "rb") as lines, os.fdopen(to, "wb", buffering=0) as out:
        for line in without_panics(iter(lines)):
            out.write(line)


def _switch(log: logging.Logger, old: IO[str], new: IO[str]) -> None:
    old.flush()
    sys.stderr = new
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


def _on_stderr(stream: IO[str]) -> bool:
    """Whether a stream writes to file descriptor 2; under a test's capture it does not."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False
