"""Tries the lake of a ``[lake]`` table: with its credentials, whether they may list, read, write and remove there.

In Azure a right is asked for with a request about a blob that is not there: who has it is told that it is not there,
who has not is refused before that. So every right is proven and nothing is changed.
"""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from voltmill.connectors import remote, remote_errors
from voltmill.connectors.extras import MissingExtra
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.probe import Finding
from voltmill.connectors.probe_network import explain
from voltmill.connectors.store import LakeError, Store

#: For all requests together; the first one gets a token and a connection.
SECONDS: Final = 9.0

_ROLE: Final = (
    "give this identity the role Storage Blob Data Contributor on the container (it takes up to ten minutes), "
    "or the SAS the permissions rwdl"
)
_KEY: Final = "set account_key, sas_token or connection_string to one of this account; is the clock right?"
#: What Azure Storage calls it -> what is wrong, and what mends it.
_CODES: Final = {
    "AuthorizationPermissionMismatch": ("the role or the SAS does not allow it", _ROLE),
    "AuthorizationFailure": (
        "refused: the firewall of the account, or the kind of SAS",
        "let this network in: az storage account network-rule add; or use an account SAS or a role",
    ),
    "AuthorizationSourceIPMismatch": ("the SAS is for other addresses", "make one for this address"),
    "AuthorizationServiceMismatch": ("the SAS is for another service", "make one for blobs (ss=b)"),
    "AuthorizationResourceTypeMismatch": ("the SAS is not for containers and objects", "make one with srt=co"),
    "AuthorizationProtocolMismatch": ("the SAS is for another protocol", "make one for the protocol of the URL"),
    "AuthenticationFailed": ("the key, the SAS or the token is wrong or has expired", _KEY),
    "InvalidAuthenticationInfo": ("the token is not one for this account", "is it of the account's own tenant?"),
    "KeyBasedAuthenticationNotPermitted": (
        "keys are switched off for this account",
        'write storage_options = { account_name = "...", credential = "default" }',
    ),
    "NoAuthenticationInformation": ("no credential was sent", "set one in storage_options"),
    "PublicAccessNotPermitted": ("no credential was sent", "set one in storage_options"),
    "AccountIsDisabled": ("the account is disabled", "enable it in Azure"),
}


def probe(settings: LakeSettings, *, seconds: float = SECONDS) -> Finding:
    """Whether the lake can be used with these settings; in ``seconds`` at most, changes and raises nothing."""
    place = f"lake {settings.place}"
    try:
        store = settings.open()
    except MissingExtra as error:
        problem, _, mend = str(error).removeprefix(f"a {place.replace('lake ', 'lake at ')} ").rpartition(": ")
        return Finding(place, problem, mend)
    except LakeError as error:
        return Finding(place, str(error).removeprefix(f"{place}: "), "mend url or storage_options")
    if store.local:
        return _local(place, Path(str(store.root)))
    return _Asking(place, settings, store, seconds).found()


class _Asking:
    """The requests to one lake over the network."""

    def __init__(self, place: str, settings: LakeSettings, store: Store, seconds: float) -> None:
        self._place, self._settings, self._fs = place, settings, store.fs
        self._missing = store.path(f"_probe-{uuid.uuid4().hex}")
        self._container = str(store.root).split("/")[0]
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    def found(self) -> Finding:
        rights: dict[str, Callable[..., Any]] = {"list": lambda **limit: self._fs.ls(self._missing, **limit)}
        if remote.is_azure(self._settings.url):
            rights |= {
                "read": lambda **limit: self._fs.cat_file(self._missing, **limit),
                "write": lambda **limit: self._fs.setxattrs(self._missing, probe="1", **limit),
                "remove": lambda **limit: self._fs.rm_file(self._missing, **limit),
            }
        for verb, ask in rights.items():
            error = self._asked(ask)
            if error is not None:
                problem, mend = self._explained(error)
                return Finding(self._place, f"cannot {verb}: {problem}", mend)
        return Finding(self._place, facts=f"may {', '.join(rights)}")

    def _asked(self, ask: Callable[..., Any]) -> Exception | None:
        """What went wrong; that a blob is not there is what was wanted."""
        limit = {"timeout": max(self._until - time.monotonic(), 0.1)} if remote.ends_in_time(self._fs) else {}
        try:
            ask(**limit)
        except Exception as error:
            return None if self._not_there(error) and not self._no_container(error) else error
        return None

    def _not_there(self, error: Exception) -> bool:
        """Whether the answer was that, and not what adlfs makes of any failure."""
        bare = isinstance(error, FileNotFoundError) and error.__cause__ is None
        return bare or remote_errors.status_of(error) == 404

    def _no_container(self, error: Exception) -> bool:
        return remote_errors.code_of(error) in ("ContainerNotFound", "FilesystemNotFound")

    def _explained(self, error: Exception) -> tuple[str, str]:
        code = remote_errors.code_of(error)
        if self._no_container(error):
            return (
                f"there is no container {self._container}",
                f"az storage container create --name {self._container}; or let the first start make it",
            )
        line = remote_errors.line_of(error.__cause__ or error, self._settings.storage_options)
        if code == "AuthorizationFailure" and "authenticate" in line:  # what Azurite says of a wrong key
            code = "AuthenticationFailed"
        if code in _CODES:
            problem, mend = _CODES[code]
            said = line.rpartition(f"({code}: ")[2].removesuffix(")") if f"({code}: " in line else ""
            return f"{problem} ({remote_errors.status_of(error)} {code}{f': {said}' if said else ''})", mend
        if remote_errors.status_of(error) is not None:
            return line, ""
        if remote_errors.denied(error):
            return line, "give this process an identity: docs/lake.md, Credentials"
        return explain(error, seconds=self._seconds)


def _local(place: str, folder: Path) -> Finding:
    """Whether this user may write a folder, or make it."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return Finding(place, f"{there} is a file", "name a folder in [lake] url")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return Finding(place, f"this user may not write {there}", "give it the right, or name another folder")
    return Finding(place, facts="" if there == folder.absolute() else "made at the first start")
