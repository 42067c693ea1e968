"""Azurite under chaos: stopped, paused, cut off and slow, behind a proxy."""

import json
import random
from pathlib import Path

import fsspec
from servers import Azurite

from chaos.faults import LAKE, Fault
from chaos.proxy import Proxy

_CONTAINER = "chaos"


class AzureLake:
    """A container of Azurite, which keeps its blobs on disk."""

    name = "Azurite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "azurite").mkdir()
        self._server = Azurite(folder / "azurite")
        self._proxy = Proxy(self._server.port)
        fsspec.filesystem("abfs", **self._server.options).mkdir(_CONTAINER)
        through = self._server.connection_string.replace(f":{self._server.port}/", f":{self._proxy.port}/")
        options = f"storage_options = {{ connection_string = {json.dumps(through)} }}"
        self.config = f'[lake]\nurl = "abfs://{_CONTAINER}/lake"\n{options}\n'

    def faults(self) -> list[Fault]:
        server, proxy, random_ = self._server, self._proxy, random.Random("azurite")
        return [
            Fault("lake stopped", LAKE, server.stop, server.start, (0.5, 6.0)),
            Fault("lake paused", LAKE, server.pause, server.resume, (0.5, 15.0)),
            Fault("lake unreachable", LAKE, proxy.cut, proxy.restore, (0.5, 8.0)),
            Fault("lake unreachable, minutes", LAKE, proxy.cut, proxy.restore, (60.0, 90.0), rare=True),
            Fault("lake silent", LAKE, proxy.blackhole, proxy.restore, (0.5, 15.0)),
            Fault("lake slow", LAKE, lambda: proxy.delay(0.3), proxy.restore, (1.0, 4.0)),
            Fault("lake connections dropped", LAKE, lambda: proxy.drop(0.7, random_), lambda: None, (0.0, 0.1)),
        ]

    def collect(self) -> Path:
        """Download everything."""
        copy = self._folder / "lake-copy"
        fs = fsspec.filesystem("abfs", **self._server.options)
        fs.invalidate_cache()
        for path in fs.find(f"{_CONTAINER}/lake"):
            file = copy / path.removeprefix(f"{_CONTAINER}/lake/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(fs.cat_file(path))
        return copy

    def close(self) -> None:
        self._proxy.close()
        self._server.stop()
