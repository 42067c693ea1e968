"""Mutated messages of every shipped dialect through the real decoder: nothing raises, each is accounted for.

``python -m chaos.mutations --messages 1000000 --seed 1``. A message goes through the mapping of its dialect,
now and then through another one. What is checked: no exception, no dead letter with the reason ``internal``,
every sample in the rows or in the dead letters exactly once (by ``source_offset``), sound Arrow columns.
"""

import argparse
import itertools
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from chaos.mutate import Mutator
from voltmill.flows.simulate import SimulateSettings, messages
from voltmill.flows.warm_up import raw_batch
from voltmill.operators.decode import Decoder
from voltmill.operators.dialects import SHIPPED
from voltmill.operators.mapping import build_mapper
from voltmill.operators.sample import DecodeSettings

_DOCS: Final = Path(__file__).parent.parent.parent / "docs"
_BATCH: Final = 1_000
_LARGEST: Final = DecodeSettings().max_payload_bytes
#: What each message is made of: one object, an array, lines.
_FORMS: Final = ("single", "single", "bytes", "bytes", "array", "lines")


class Tally(msgspec.Struct):
    """What became of the messages."""

    messages: int = 0
    elements: int = 0
    """Samples in them, where their number is known."""
    rows: int = 0
    dead_letters: int = 0
    reasons: dict[str, int] = {}
    problems: list[str] = []
    """What must not be; empty."""


class Mutant(msgspec.Struct, frozen=True):
    """A mutated message."""

    payload: bytes
    samples: int | None
    """How many rows and dead letters it must give; None: one at least."""


def examples() -> dict[str, list[bytes]]:
    """Messages of each dialect: those of the documentation, in its words, and simulated ones."""
    found: dict[str, list[bytes]] = {name: [] for name in SHIPPED}
    for page in ("mappings.md", "telemetry.md"):
        for name, text in re.findall(r"```json (\w+)\n(.*?)```", (_DOCS / page).read_text(), re.DOTALL):
            if name in found:
                found[name].append(msgspec.json.encode(msgspec.json.decode(text)))
    settings = SimulateSettings(gateways=1, packs_per_gateway=1, modules_per_pack=4)
    found["canonical"] += [payload for _, payload in itertools.islice(messages(settings), 8)]
    assert all(found.values()), found
    return found


def mutants(seed: int, dialect: str) -> Iterator[Mutant]:
    """Mutated messages of a dialect, without end."""
    random_, mutator, pool = random.Random(f"{dialect}-{seed}"), Mutator(seed), examples()[dialect]
    # A CloudEvents message whose data became an array, or text, may hold any number of samples.
    one = None if SHIPPED[dialect].envelope else 1
    while True:
        message, other = random_.choice(pool), random_.choice(pool)
        form = random_.choice(_FORMS)
        if form == "single":
            yield Mutant(mutator.value_of(message), one)
        elif form == "bytes":
            payload = mutator.bytes_of(message, other)
            many = b"\n" in payload or payload.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
            yield Mutant(payload, None if many else one)
        elif form == "array":
            size = random_.randint(1, 6)
            elements = [mutator.value_of(random_.choice(pool)) for _ in range(size)]
            yield Mutant(b"[" + b",".join(elements) + b"]", size if one else None)
        else:
            lines = [_line(mutator.bytes_of(random_.choice(pool), other)) for _ in range(random_.randint(1, 5))]
            lines.insert(random_.randint(0, len(lines)), message)  # one sound line makes lines of all of them
            # A line that is an array holds samples of its own, and a mark at the beginning belongs to no line.
            known = one and not any(line.startswith((b"[", b"\xef\xbb\xbf")) for line in lines)
            yield Mutant(b"\n".join(lines), len(lines) if known else None)


def _line(text: bytes) -> bytes:
    """The text as one line that is not empty."""
    return text.replace(b"\n", b" ").strip(b" \t\r") or b"x"


def run(count: int, seed: int, on_progress: Any = lambda done: None) -> Tally:
    """Send so many mutated messages through the decoder."""
    random_, tally = random.Random(seed), Tally()
    sources = {dialect: mutants(seed, dialect) for dialect in SHIPPED}
    decoders = {name: _decoder(name) for name in SHIPPED}
    while tally.messages < count:
        dialect = random_.choice(sorted(sources))
        mapping = dialect if random_.random() < 0.85 else random_.choice(sorted(decoders))
        batch = list(itertools.islice(sources[dialect], min(_BATCH, count - tally.messages)))
        _decode(decoders[mapping], batch, dialect == mapping, f"{dialect} as {mapping}", tally)
        on_progress(tally.messages)
    return tally


def _decoder(name: str) -> Decoder:
    settings = DecodeSettings(mapping=name)
    return Decoder(settings, mapper=None if name == "canonical" else build_mapper(settings, {}))


def _decode(decoder: Decoder, batch: list[Mutant], own: bool, what: str, tally: Tally) -> None:
    raw = raw_batch([mutant.payload for mutant in batch])
    tally.messages += len(batch)
    try:
        telemetry, letters = decoder(raw)
    except Exception as error:
        tally.problems.append(f"{what}: {type(error).__name__}: {error}: {_culprit(decoder, batch)!r}")
        return
    found = np.zeros(len(batch), np.int64)
    for out in (telemetry, letters):
        if out is not None:
            out.validate(full=True)
            found += np.bincount(out.column("source_offset").to_numpy(), minlength=len(batch))
    tally.rows += telemetry.num_rows if telemetry is not None else 0
    _count_reasons(letters, what, tally)
    for mutant, times in zip(batch, found.tolist(), strict=True):
        wanted = mutant.samples if own else None
        if len(mutant.payload) > _LARGEST:
            wanted = 1  # refused as a whole
        tally.elements += wanted or 0
        if times < 1 or (wanted is not None and times != wanted):
            tally.problems.append(f"{what}: {times} of {wanted or 'some'} samples: {mutant.payload[:500]!r}")


def _count_reasons(letters: Any, what: str, tally: Tally) -> None:
    for letter in letters.select(["reason", "detail", "payload"]).to_pylist() if letters is not None else []:
        tally.dead_letters += 1
        tally.reasons[letter["reason"]] = tally.reasons.get(letter["reason"], 0) + 1
        if letter["reason"] == "internal":
            tally.problems.append(f"{what}: {letter['detail']}: {letter['payload'][:500]!r}")


def _culprit(decoder: Decoder, batch: list[Mutant]) -> bytes:
    """The message of a batch that raises by itself."""
    for mutant in batch:
        try:
            decoder(raw_batch([mutant.payload]))
        except Exception:
            return mutant.payload[:500]
    return b""


def main() -> int:
    """Run it and say what came of it; status 1 if a message was lost, or something raised."""
    parser = argparse.ArgumentParser(prog="python -m chaos.mutations", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    tally = run(options.messages, options.seed)
    print(text(tally, options.seed, time.monotonic() - began))
    return int(bool(tally.problems))


def text(tally: Tally, seed: int, seconds: float) -> str:
    """What came of it."""
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(tally.reasons.items(), key=lambda item: -item[1]))
    lines = [
        f"{tally.messages} mutated messages (seed {seed}, {seconds:.0f} s): {tally.rows} rows, "
        f"{tally.dead_letters} dead letters; {len(tally.problems)} raised, lost or doubled",
        f"    dead letters: {reasons}",
    ]
    return "\n".join([*lines, *tally.problems[:10]])


if __name__ == "__main__":
    sys.exit(main())
