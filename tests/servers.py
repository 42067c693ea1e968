"""Real servers for tests: on free ports of the loopback, ended by their process ids."""

import datetime
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from voltmill.flows.broker import find_mosquitto, free_port


def missing(server: str) -> None:
    """Skip the test because a server is not installed; on CI, where all must be, fail."""
    message = f"{server} is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{message}; CI needs it")
    pytest.skip(message)


@dataclass
class Certificates:
    """An authority of our own, with a server's certificate for localhost and a client's."""

    ca_file: str
    server_cert: str
    server_key: str
    client_cert: str
    client_key: str


def make_certificates(folder: Path) -> Certificates:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def save(stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[str, str]:
        cert_file, key_file = folder / f"{stem}.pem", folder / f"{stem}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(cert_file), str(key_file)

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("voltmill test CA"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = builder("voltmill test CA", ca_key).add_extension(x509.BasicConstraints(True, None), True)
    ca_file, _ = save("ca", ca.sign(ca_key, hashes.SHA256()), ca_key)
    server_key, client_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    server = builder("localhost", server_key).add_extension(names, False).sign(ca_key, hashes.SHA256())
    client = builder("gateway", client_key).sign(ca_key, hashes.SHA256())
    return Certificates(ca_file, *save("server", server, server_key), *save("client", client, client_key))


class Mosquitto:
    """A Mosquitto broker that can be stopped and started again on its port, with its sessions."""

    def __init__(
        self,
        folder: Path,
        *,
        tls: Certificates | None = None,
        users: dict[str, str] | None = None,
        persistence: bool = False,
    ) -> None:
        self.host = "localhost" if tls else "127.0.0.1"
        self.port = free_port()
        self.folder = folder
        lines = [f"listener {self.port} 127.0.0.1", "max_inflight_messages 65535", "max_queued_messages 0"]
        lines += ["user root"] if os.geteuid() == 0 else []
        if tls:
            lines += [f"cafile {tls.ca_file}", f"certfile {tls.server_cert}", f"keyfile {tls.server_key}"]
            lines += ["require_certificate true"]
        if users:
            (folder / "passwords").write_text("".join(f"{user}:{word}\n" for user, word in users.items()))
            subprocess.run(["mosquitto_passwd", "-U", str(folder / "passwords")], check=True)
            lines += [f"password_file {folder / 'passwords'}"]
        if persistence:
            lines += ["persistence true", f"persistence_location {folder}/"]
        lines += [f"allow_anonymous {'false' if users else 'true'}"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        path = find_mosquitto()
        assert path is not None
        with (self.folder / "mosquitto.log").open("ab") as log:
            command = [path, "-v", "-c", str(self.folder / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        await_port(self.port, self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    @property
    def log(self) -> str:
        return (self.folder / "mosquitto.log").read_text(errors="replace")


def await_port(port: int, process: "subprocess.Popen[bytes]", timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server for port {port} ended with status {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"nothing listens on port {port} after {timeout} s")


def has_mosquitto() -> bool:
    return find_mosquitto() is not None and shutil.which("mosquitto_passwd") is not None
