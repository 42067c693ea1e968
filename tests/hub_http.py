"""The HTTP side of the hub stand-in: what devices send, and what tests do to the hub.

POST /devices/{id}/messages/events     a message, or a batch, as the REST interface of IoT Hub takes them
POST /append                           [{"body": base64, "partition", "properties", "device_id", "enqueued_ms"}]
POST /drop, /leave, /come, /expire     cut all connections; be away; be there again; {"partition", "before"}
GET  /stats                            what was counted, and the partitions' first and next sequence numbers
"""

import base64
import hashlib
import hmac
import json
import re
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from hub_server import HubServer

#: IoT Hub takes no larger message, nor batch.
LARGEST = 256 << 10
_BATCH = "application/vnd.microsoft.iothub.json"
_APPLICATION = "iothub-app-"


class HubHttp:
    """The HTTP server, in threads of its own.

    Args:
        hub: what requests act on.
        certificate: certificate and key file; None: no TLS.
        device_keys: base64 keys by device id, whose signatures are checked; empty: none are.
    """

    def __init__(self, hub: "HubServer", certificate: tuple[str, str] | None, device_keys: Mapping[str, str]) -> None:
        outer = self
        self.hub = hub
        self.device_keys = device_keys
        self.refusals: list[int] = []
        """Statuses with which the next messages of devices are refused."""

        class Handler(_Handler):
            owner = outer

        self._server = _Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def refusal(self, device_id: str, path: str, authorization: str) -> str | None:
        """Why a device may not send; None: it may."""
        if not self.device_keys:
            return None
        match = re.fullmatch(r"SharedAccessSignature (.*)", authorization)
        parts = dict(part.split("=", 1) for part in match[1].split("&")) if match else {}
        key = base64.b64decode(self.device_keys.get(device_id, ""))
        digest = hmac.digest(key, f"{parts.get('sr')}\n{parts.get('se')}".encode(), hashlib.sha256)
        good = key and base64.b64encode(digest).decode() == unquote(parts.get("sig", ""))
        return None if good and unquote(parts["sr"]).endswith(path) else "Unauthorized"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is none of our faults."""


class _Handler(BaseHTTPRequestHandler):
    owner: HubHttp
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, self.owner.hub.stats())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/devices/([^/]+)/messages/events/?", path):
            self._answer(*self._from_device(unquote(match[1]), path, body))
        else:
            self._answer(200, self._act(path, json.loads(body or b"{}")))

    def _answer(self, status: int, value: Any) -> None:
        body = b"" if status == 204 else json.dumps(value).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _from_device(self, device_id: str, path: str, body: bytes) -> tuple[int, Any]:
        hub = self.owner.hub
        if self.owner.refusals:
            return self.owner.refusals.pop(0), {"Message": "refused for a test"}
        if "api-version" not in parse_qs(urlsplit(self.path).query):
            return 400, {"Message": "ErrorCode:InvalidProtocolVersion;api-version is missing"}
        whose = path.partition("/messages")[0]
        if refusal := self.owner.refusal(device_id, whose, self.headers.get("Authorization", "")):
            return 401, {"Message": f"ErrorCode:IotHubUnauthorizedAccess;{refusal}"}
        if len(body) > LARGEST:
            return 413, {"Message": "ErrorCode:MessageTooLarge"}
        if self.headers.get("Content-Type", "").startswith(_BATCH):
            for one in json.loads(body):
                raw = base64.b64decode(one["body"]) if one.get("base64Encoded", True) else one["body"].encode()
                hub.append(raw, device_id=device_id, **_properties(one.get("properties", {})))
        else:
            hub.append(body, device_id=device_id, **_properties(dict(self.headers.items())))
        return 204, None

    def _act(self, path: str, asked: Any) -> Any:
        hub = self.owner.hub
        if path == "/append":
            return [hub.append(base64.b64decode(one.pop("body")), **one) for one in asked]
        if path == "/refuse":
            self.owner.refusals.extend(asked["statuses"])
            return {}
        action = {"/drop": hub.drop, "/leave": hub.leave, "/come": hub.come, "/expire": hub.expire}[path]
        action(**asked)
        return {}


def _properties(given: Mapping[str, str]) -> dict[str, Any]:
    """Application and system properties, which come as headers, or as properties in a batch."""
    named = {name.lower(): value for name, value in given.items()}
    application = {
        name[len(_APPLICATION) :]: value for name, value in given.items() if name.lower().startswith(_APPLICATION)
    }
    return {
        "properties": application,
        "content_type": named.get("iothub-contenttype", ""),
        "content_encoding": named.get("iothub-contentencoding", ""),
    }
