"""``python -m chaos``: run the suite, print its table, write ``latest.json``; status 1 if a promise was broken."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos import report
from chaos.driver import Failed
from chaos.scenarios import SCENARIOS, run

_LATEST = Path(__file__).parent / "latest.json"


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="the run that is drawn; printed if not given")
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of each scenario, at least")
    parser.add_argument("--rounds", type=int, default=3, help="how often each fault happens")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), action="append", help="default: all")
    parser.add_argument("--folder", type=Path, default=None, help="where to work, and to leave everything")
    parser.add_argument("--no-write", action="store_true", help="do not write latest.json")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    command = f"make chaos SEED={seed} KILLS={options.kills}"
    _say(f"chaos: {command}")
    results = []
    for name in options.scenario or SCENARIOS:
        folder = _folder(options.folder, name)
        try:
            result = run(name, folder, seed, kills=options.kills, rounds=options.rounds, rescale=True, say=_say)
        except Failed as failure:
            _say(f"{name}: FAILED with SEED={seed} in {folder}: {failure}")
            return 1
        print("\n" + report.text(result) + "\n", flush=True)
        results.append(result)
        if result.passed and options.folder is None:
            shutil.rmtree(folder)
    if not options.no_write:
        report.write(_LATEST, report.document(results, command))
    passed = all(result.passed for result in results)
    _say(f"{'nothing lost, nothing doubled' if passed else 'FAILED'}: SEED={seed}")
    return 0 if passed else 1


def _folder(parent: Path | None, name: str) -> Path:
    if parent is None:
        return Path(tempfile.mkdtemp(prefix=f"voltmill-chaos-{name}-"))
    (parent / name).mkdir(parents=True)
    return parent / name


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
