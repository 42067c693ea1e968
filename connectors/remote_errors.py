"""Errors of a file system over the network: which pass, which mean that we are not let in, and each on one line.

An error of Azure's client carries the status and the headers of the answer; what adlfs raises in its place does
not, but was raised while the other was handled. So both kinds of links between errors are followed.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: Errors of a disk or a mount that pass, or that an operator mends: full, away, stale, read-only, not allowed.
_PASSING: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EPERM", "EBUSY", "EAGAIN", "EMFILE", "ENFILE", "ENOMEM"),
        *("ENOENT", "ENOTDIR", "EEXIST", "ESTALE", "ENODEV", "ENXIO", "EREMOTEIO", "ENOLINK", "ENOTCONN"),
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ESHUTDOWN"),
    )
)
#: Answers that pass: 404 is the container; 408 a time-out; 409 a conflict, such as a container that is being
#: deleted or made; 412 a blob that changed while it was read, or that another program holds a lease on; 429 throttling.
_PASSING_STATUS: Final = frozenset({404, 408, 409, 412, 429})
#: Answers that an operator mends while the flow runs: a key that was changed, a role that was taken.
_DENIED: Final = frozenset({401, 403})
#: The answer to ``If-None-Match: *`` on a blob that is there (also of the commit of its blocks).
_THERE: Final = frozenset({"BlobAlreadyExists", "ResourceAlreadyExists"})

#: Options that are no secrets, and help to understand an error.
_PLAIN: Final = frozenset({"account_name", "account_host", "credential", "client_id", "tenant_id", "location_mode"})
#: Parts of a connection string or of a SAS that open something.
_PARTS: Final = re.compile(r"(?:AccountKey|SharedAccessSignature|sig)=([^;&\s]+)", re.IGNORECASE)
_SECRET: Final = re.compile(
    r"((?:AccountKey|SharedAccessSignature|sig|password|secret|token|assertion)=)[^;&\s'\"]+|(\bbearer\s+)[\w.~+/=-]+",
    re.IGNORECASE,
)
#: A token of Entra ID, wherever it stands.
_TOKEN: Final = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*")
#: The end of an error of Azure's client: the code, and what more there is about a token.
_AZURE: Final = re.compile(
    r"(?: RequestId:.*?)? ErrorCode: ?(\w+)(?: authenticationerrordetail:([^:']{1,80}?)\.? Content:)?"
)
_TEXT_MOST: Final = 400
#: What a kind of identity says that is simply not used here.
_NOT_SET_UP: Final = re.compile(r"unavailable|not found|not installed|requires the|could not be found|content type")
_NO_IDENTITY: Final = "found no identity: no service principal, workload identity, managed identity or login"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was made from."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error was made from."""
    for cause in causes(error):
        for name in ("status_code", "status"):
            if isinstance(status := getattr(cause, name, None), int):
                return status
    return None


def code_of(error: BaseException) -> str:
    """The code by which Azure Storage names what is wrong, such as ``AuthorizationPermissionMismatch``."""
    for cause in causes(error):
        if code := getattr(cause, "error_code", None):
            return str(getattr(code, "value", code))
    return ""


def is_there(error: FileExistsError) -> bool:
    """Whether a file of that name is there: adlfs says so of each conflict, also of a container in deletion."""
    return status_of(error) is None or code_of(error) in _THERE


def retry_after(error: BaseException) -> float:
    """How long the answer that an error was made from asks us to wait, s; 0 where it does not."""
    for cause in causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        if headers is not None and (text := headers.get("Retry-After")):
            from voltmill.connectors import http_pool  # only here, for a local lake needs no HTTP

            return http_pool.retry_after(text)
    return 0.0


def may_pass(error: BaseException) -> bool:
    """Whether an error may pass by itself, or once an operator has mended what it names."""
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS or status in _DENIED
    network = _network_errors()
    for cause in causes(error):
        if isinstance(cause, OSError) and (
            cause.errno in _PASSING or isinstance(cause, ConnectionError | TimeoutError)
        ):
            return True
        if isinstance(cause, network):
            return True
    return False


def denied(error: BaseException) -> bool:
    """Whether the credentials opened nothing, or none could be had."""
    return status_of(error) in _DENIED or any(isinstance(cause, _refusals()) for cause in causes(error))


def _network_errors() -> tuple[type[Exception], ...]:
    """Imported when there is an error: they cost 0.3 s, which a local lake need not pay, and may not be installed."""
    found: list[type[Exception]] = [*_refusals()]
    try:
        from aiohttp import ClientConnectionError, ClientPayloadError

        found += [ClientConnectionError, ClientPayloadError]
    except ImportError:
        pass
    try:
        from azure.core.exceptions import ServiceRequestError, ServiceResponseError

        found += [ServiceRequestError, ServiceResponseError]
    except ImportError:
        pass
    return tuple(found)


def _refusals() -> tuple[type[Exception], ...]:
    """What is raised, without a status, when no token could be had."""
    try:
        from azure.core.exceptions import ClientAuthenticationError
    except ImportError:
        return ()
    return (ClientAuthenticationError,)


def line_of(error: BaseException, options: Mapping[str, Any]) -> str:
    """An error of a library on one line, with what could open the lake struck out.

    Of an answer of Azure's the sentence and the code, not the XML they came in.
    """
    text = " ".join(str(error).split())
    if isinstance(error, TimeoutError):
        text = text or "no answer in time"
    if code := re.search(
        r"(?: RequestId:.*?)? ErrorCode: ?(\w+)(?: authenticationerrordetail:([^:']{1,80}?)\.? Content:)?", text
    ):
        text = f"{text[: code.start()]} ({code[1]}{f': {code[2]}' if code[2] else ''})"
    if "DefaultAzureCredential failed" in text:
        text = _no_identity(str(error))
    line = f"{type(error).__name__}: {text}"
    for secret in sorted(_secrets(options), key=len, reverse=True):
        line = line.replace(secret, "***")
    line = _SECRET.sub(lambda match: f"{match[1] or match[2]}***", _TOKEN.sub("***", line))
    return line if len(line) <= _TEXT_MOST else f"{line[:_TEXT_MOST]} ..."


def _no_identity(text: str) -> str:
    """Why no token could be had: what each kind of identity says that is there at all."""
    said = re.findall(r"^\s+(\w+Credential: .+)$", text, re.MULTILINE)
    why = [" ".join(line.split()) for line in said if not _NOT_SET_UP.search(line)]
    return "; ".join(["no token of Entra ID could be had", *why]) if why else _NO_IDENTITY


def _secrets(options: Mapping[str, Any]) -> set[str]:
    """What must not be told: of the options, and of the environment that adlfs takes them from."""
    given = [value for name, value in options.items() if isinstance(value, str) and name not in _PLAIN]
    for name in ("CONNECTION_STRING", "ACCOUNT_KEY", "SAS_TOKEN", "CLIENT_SECRET"):
        given.append(os.environ.get(f"AZURE_STORAGE_{name}", ""))
    parts = [part for value in given for part in _PARTS.findall(value)]
    return {text for text in (*given, *parts) if len(text) > 3}
