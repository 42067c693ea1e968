"""What is wrong with a connection that did not come about, and what mends it: names, ports, certificates, TLS."""

import socket
import ssl
from collections.abc import Iterator

_CLOSED = "check host and port, whether the server runs, and open the firewall for this machine"

#: Of OpenSSL's verification of a certificate (X509_V_ERR_*): code -> what is wrong and what mends it.
_CERTIFICATE = {
    9: ("its certificate is not valid yet", "set the clock of this machine"),
    10: ("its certificate has expired", "renew it on the server"),
    62: ("its certificate is made out to another name", "set host to a name that stands in the certificate"),
    64: ("its certificate does not name this address", "set host to a name that stands in the certificate"),
}
_UNKNOWN_AUTHORITY = ("its certificate comes from an authority that is not trusted", "name the authority in ca_file")


def explain(error: BaseException, *, seconds: float) -> tuple[str, str]:
    """What an error of a socket, or one that it caused, says of the connection.

    Args:
        error: as it was raised; its causes are looked at too.
        seconds: how long was waited, for the line about a time-out.

    Returns:
        What is wrong, and what mends it. Neither repeats the text of an error it does not know, but its kind.

    Example:
        >>> explain(ConnectionRefusedError(111, "Connection refused"), seconds=5)[0]
        'the connection is refused: nothing listens on that port'
    """
    causes = list(_causes(error))
    for cause in causes:  # what TLS says is nearer to the matter than that the connection ended by it
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _CERTIFICATE.get(cause.verify_code, _UNKNOWN_AUTHORITY)
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            return _alert(cause.reason)
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return "it does not speak TLS on that port", "take the port for TLS, or leave TLS out"
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return "there is no host of that name", "mend host, or the name service of this machine"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection is refused: nothing listens on that port", _CLOSED
        if isinstance(cause, TimeoutError):
            return f"no answer within {seconds:g} s", _CLOSED
        if isinstance(cause, ConnectionError | ssl.SSLError):
            return "it closed the connection", "check port and TLS: does it expect TLS, or none?"
    if isinstance(error, OSError) and error.strerror:  # such as "Network is unreachable"
        return f"the connection failed: {error.strerror}", _CLOSED
    return f"the connection failed: {type(error).__name__}", _CLOSED


def _alert(reason: str) -> tuple[str, str]:
    """What the server said against our side of TLS."""
    said = reason.partition("ALERT_")[2].replace("_", " ").lower()
    return f"it refuses our side of TLS: {said}", "name a certificate that it accepts in cert_file and key_file"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was made from, whether raised from it or handed to it."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if found not in seen:
            seen.append(found)
            yield found
            waiting += [e for e in (found.__cause__, *found.args, found.__context__) if isinstance(e, BaseException)]
