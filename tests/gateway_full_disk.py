"""A gateway's store on a disk of a few megabytes that it fills, and empties again. Run: gateway_full_disk.py FOLDER.

It mounts a tmpfs on the folder, so it needs a mount namespace of its own. Prints what it saw as JSON.
"""

import json
import subprocess
import sys
from pathlib import Path

from voltmill.connectors.gateway_store import GatewayStore, Message, StoreFull


def main(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)], check=True)
    store = GatewayStore(folder / "g.db", max_bytes=1 << 30, max_entry_bytes=10_000, reserve_bytes=3 << 20)
    stored, said = 0, ""
    while not said:
        try:
            rows = [Message("a", stored + k, k, 0.0, b"%08d" % (stored + k) + b"x" * 1000) for k in range(100)]
            stored += store.put(rows)
        except StoreFull as error:
            said = str(error)
    sent: list[int] = []
    while store.messages:
        waiting = store.oldest(50_000)
        store.remove(waiting[-1].id)
        sent += [int(one.entry[:8]) for one in waiting]
    again = store.put([Message("a", 10**6 + k, k, 0.0, b"y" * 1000) for k in range(100)])
    found = {"said": said, "stored": stored, "in_order": sent == list(range(stored)), "again": again}
    store.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
