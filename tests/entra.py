"""A stand-in for the token endpoint of Entra ID, over TLS: gives tokens such as Azurite checks, signed by nobody."""

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from servers import Certificates

#: What Azure Storage expects of a token (https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory).
AUDIENCE = "https://storage.azure.com"
ISSUER = "https://sts.windows.net/tenant/"


class Entra:
    """Answers each request for a token; ``asked`` has the path and the form of each.

    Args:
        certificates: its own certificate is that of the server.
    """

    def __init__(self, certificates: Certificates) -> None:
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.audience, self.refuse, self.lifetime = AUDIENCE, "", 3600
        entra = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                entra.asked.append((self.path, form))
                body = json.dumps(entra._answer()).encode()
                self.send_response(400 if entra.refuse else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server_cert, certificates.server_key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self._authorities = certificates.ca_file

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_port}"

    def environment(self, folder: Path) -> dict[str, str]:
        """What the webhook of workload identity puts into a pod, and the authority that is trusted here."""
        file = folder / "federated-token"
        file.write_text("assertion-of-the-cluster")
        return {
            "AZURE_CLIENT_ID": "client",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_FEDERATED_TOKEN_FILE": str(file),
            "AZURE_AUTHORITY_HOST": f"{self.url}/",
            "SSL_CERT_FILE": self._authorities,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self) -> dict[str, Any]:
        if self.refuse:
            return {"error": "invalid_client", "error_description": self.refuse}
        now = int(time.time())
        claims = {"aud": self.audience, "iss": ISSUER, "iat": now, "nbf": now - 300, "exp": now + self.lifetime}
        token = ".".join((_part({"alg": "RS256", "typ": "JWT"}), _part(claims), "c2lnbmF0dXJl"))
        return {"token_type": "Bearer", "expires_in": self.lifetime, "access_token": token}


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
