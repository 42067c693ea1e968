"""Real servers for tests: on free ports of the loopback, ended by their process ids."""

import contextlib
import ctypes
import datetime
import functools
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
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


def with_mounts(folder: Path, script: str) -> Any:
    """Run a script of the tests where it may mount a file system on ``folder``; what it prints, as JSON."""
    command = [sys.executable, script, str(folder)]
    namespaces: list[list[str]] = [["unshare", "-m"], ["unshare", "-rm"]]
    for namespace in namespaces if shutil.which("unshare") else []:
        mount = [*namespace, "mount", "-t", "tmpfs", "none", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            done = subprocess.run([*namespace, *command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)
    pytest.skip("no file system can be mounted here, neither as root nor in a user's namespace")


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


UNPACKED = Path(__file__).parent.parent / ".cache/servers"
"""Where deploy/dev/servers.sh unpacks what the system lacks."""


def find_postgresql() -> Path | None:
    """The folder with ``postgres`` and ``initdb``: Debian keeps them off the PATH, one folder a version."""
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return next((folder for folder in [*reversed(system), UNPACKED / "bin"] if (folder / "postgres").exists()), None)


@functools.cache
def find_psqlodbc() -> Path | None:
    """PostgreSQL's ODBC driver, with the ODBC manager loaded into this process, and for those it starts."""
    found = next(Path("/usr/lib").glob("*-linux-gnu*/odbc/psqlodbcw.so"), None)
    if found is None and (UNPACKED / "lib/psqlodbcw.so").exists():
        found = UNPACKED / "lib/psqlodbcw.so"
        os.environ["LD_LIBRARY_PATH"] = f"{UNPACKED / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        waiting = sorted(found.parent.glob("lib*.so.*"))
        for _ in range(len(waiting)):  # in whatever order they need each other
            waiting = [library for library in waiting if not _loads(library)]
    try:
        import pyodbc  # noqa: F401
    except ImportError:
        return None
    return found


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


class PostgreSQL:
    """A PostgreSQL server with a password, that can be stopped, killed or paused, and started again on its port."""

    user, password = "postgres", "p@ss:w/rd?#"

    def __init__(self, *, fsync: bool = False) -> None:
        programs = find_postgresql()
        assert programs is not None
        self.port = free_port()
        # Not in the folder of the test: pytest closes that to others, and root must run the server as another user.
        self.folder = Path(tempfile.mkdtemp(prefix="voltmill-postgresql-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        (self.folder / "password").write_text(self.password)
        (self.folder / "password").chmod(0o644)
        data = str(self.folder / "data")
        command = [str(programs / "initdb"), "-D", data, "-U", self.user, f"--pwfile={self.folder / 'password'}"]
        command += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", env=self._environment, **self._as)
        self._command = [str(programs / "postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(self.port)]
        for option in ("unix_socket_directories=", f"fsync={'on' if fsync else 'off'}", "max_connections=30"):
            self._command += ["-c", option]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None:
            return
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd="/", env=self._environment, **self._as
            )
        deadline = time.monotonic() + 60
        while not self._ready():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log[-2000:]
            time.sleep(0.02)

    def _ready(self) -> bool:
        """By the file in which the server says who it is, in the first line, and how far, in the eighth."""
        try:
            lines = (self.folder / "data/postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return self._process is not None and lines[0] == str(self._process.pid) and lines[7:8] == ["ready   "]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def query(self, text: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement; its rows, if it has any."""
        import pyodbc

        parts = f"DRIVER={find_psqlodbc()};SERVER=127.0.0.1;PORT={self.port};DATABASE={database}"
        connection = pyodbc.connect(f"{parts};UID={self.user};PWD={{{self.password}}}", autocommit=True)
        try:
            cursor = connection.execute(text)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()

    def stop(self) -> None:
        """As an administrator does it: sessions are ended, nothing is lost."""
        self.resume()
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Like a loss of power, but for what the operating system still holds."""
        ended = self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(30)
            self._process = None
        psutil.wait_procs(ended, 30)  # a new server refuses to start beside one of them

    def pause(self) -> None:
        """No process of it does anything; the system still accepts its connections."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def give(self, file: Path, name: str) -> None:
        """Put a copy of a file into its data folder, for its eyes only."""
        copy = self.folder / "data" / name
        shutil.copyfile(file, copy)
        copy.chmod(0o600)
        shutil.chown(copy, self._as.get("user"), self._as.get("group", os.getegid()))

    def remove(self) -> None:
        """Stop it, and delete its data."""
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    @property
    def _environment(self) -> dict[str, str]:
        """Without what would change its messages."""
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}

    def _signal(self, number: int) -> list[psutil.Process]:
        """To the server and each of its children."""
        if self._process is None or self._process.poll() is not None:
            return []
        postmaster = psutil.Process(self._process.pid)
        reached = [postmaster, *postmaster.children(recursive=True)]
        for process in reached:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return reached[1:]


def find_azurite() -> str | None:
    """The start script that ``deploy/dev/servers.sh`` makes, where it was run."""
    unpacked = UNPACKED / "bin/azurite-blob"
    return str(unpacked) if unpacked.exists() else shutil.which("azurite-blob")


class Azurite:
    """Azure Blob Storage in small; blobs stay on disk, so it can be stopped or killed and started again on its port."""

    #: The one account that every Azurite has, with its public key: no secret.
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, folder: Path, *, tls: Certificates | None = None) -> None:
        self.port = free_port()
        self.folder = folder
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def connection_string(self) -> str:
        where = f"BlobEndpoint=http://127.0.0.1:{self.port}/{self.account}"
        return f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};{where};"

    @property
    def options(self) -> dict[str, str]:
        """What an ``abfs://`` URL needs beside it."""
        return {"connection_string": self.connection_string}

    def start(self) -> None:
        path = find_azurite()
        assert path is not None
        command = [path, "--disableTelemetry", "--skipApiVersionCheck", "--location", str(self.folder)]
        command += ["--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        if self._tls:  # tokens of Entra ID, whose audience, issuer and lifetime it checks, go over TLS only
            command += ["--oauth", "basic", "--cert", self._tls.server_cert, "--key", self._tls.server_key]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        await_port(self.port, self._process, 60.0)

    def stop(self) -> None:
        """In good order: it writes down what it has."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """At once. What it wrote down last may be seconds old: blobs stored since are lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def pause(self) -> None:
        """It does nothing; the system still accepts its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")
