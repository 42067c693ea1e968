"""MQTT in a WebSocket (RFC 6455) on port 443, as IoT Hub offers it, handed on to a broker that has none of its own."""

import base64
import contextlib
import hashlib
import socket
import ssl
import struct
import threading

from servers import Certificates

PORT = 443
PATH = "/$iothub/websocket"
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BINARY = 0x82


class WebSocketBridge:
    """Takes connections over TLS until ``end``; PermissionError where port 443 may not be opened.

    Args:
        broker: port of the broker on the loopback.
        tls: the server's certificate.
    """

    def __init__(self, broker: int, tls: Certificates) -> None:
        self.requests: list[str] = []
        self._broker = broker
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tls.server_cert, tls.server_key)
        self._listener = socket.create_server(("127.0.0.1", PORT))
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, EOFError),
            self._context.wrap_socket(raw, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._broker)) as broker,
        ):
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += client.recv(1)
            self.requests.append(request.decode())
            key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0].decode()
            accept = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
            lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
            lines += [f"Sec-WebSocket-Accept: {accept}", "Sec-WebSocket-Protocol: mqtt", "", ""]
            client.sendall("\r\n".join(lines).encode())
            threading.Thread(target=_from_broker, args=(broker, client), daemon=True).start()
            while True:
                broker.sendall(_frame(client))


def _frame(client: ssl.SSLSocket) -> bytes:
    """The payload of the next frame, unmasked."""
    _, size = _exactly(client, 2)
    size &= 0x7F
    if size > 125:
        size = int.from_bytes(_exactly(client, 2 if size == 126 else 8), "big")
    mask = _exactly(client, 4)
    data = _exactly(client, size)
    whole = mask * (size // 4 + 1)
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole[:size], "big")).to_bytes(size, "big")


def _exactly(client: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = client.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _from_broker(broker: socket.socket, client: ssl.SSLSocket) -> None:
    with contextlib.suppress(OSError):
        while data := broker.recv(32_768):
            short = len(data) < 126
            head = bytes([_BINARY, len(data)]) if short else struct.pack(">BBH", _BINARY, 126, len(data))
            client.sendall(head + data)
