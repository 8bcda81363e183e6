"""A real redis-server for tests: on a free port of 127.0.0.1 and a Unix socket, in a folder of its own.

CWM_TEST_REDIS_SERVER names another binary, such as valkey-server. Where there is none, what asks for a server is
skipped by name.
"""

import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.backoff import NoBackoff
from redis.retry import Retry

START_S: Final = 15.0
_STOP_S: Final = 15.0
_SLOTS: Final = 16384


def binary() -> str:
    """Skips the test where there is no server to run."""
    name = os.environ.get("CWM_TEST_REDIS_SERVER", "redis-server")
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian and Ubuntu: apt-get install redis-server)")
    return found


@dataclass(frozen=True, slots=True)
class Options:
    """`append_fsync`: always, everysec or no; None keeps no append-only file. `more` as in redis.conf, with dashes."""

    password: str | None = None
    append_fsync: str | None = None
    maxmemory: str | None = None
    policy: str = "noeviction"
    tls: bool = False
    cluster: bool = False
    more: Sequence[str] = ()


class RedisServer:
    """Started by `redis_server`; every way to end and resume it keeps port, folder and options."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self.options = options
        self.port = 0
        self.unix_socket = folder / "redis.sock"
        self._binary = binary()
        self._process: subprocess.Popen[bytes] | None = None
        if options.tls:
            self.certificate = _make_certificate(folder)

    @property
    def url(self) -> str:
        user = f":{quote(self.options.password, safe='')}@" if self.options.password else ""
        if self.options.tls:
            return f"rediss://{user}127.0.0.1:{self.port}/0?ssl_ca_certs={quote(str(self.certificate))}"
        return f"redis://{user}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        user = f":{quote(self.options.password, safe='')}@" if self.options.password else ""
        return f"unix://{user}{self.unix_socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self, **more: Any) -> redis.Redis:
        """A plain client of the tests' own; replies as bytes."""
        return redis.Redis.from_url(
            self.unix_url, socket_timeout=START_S, protocol=2, retry=Retry(NoBackoff(), 0), **more
        )

    def start(self) -> None:
        """Returns when the server answers. A port that somebody else took meanwhile is left to him."""
        for _ in range(5):
            self.port = self.port or _free_port()
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            if self._answers():
                break
            self.port = 0
        else:
            raise RuntimeError(f"{self._binary} does not start; its log is {self.folder / 'log'}")
        if self.options.cluster:
            self._own_all_slots()

    def stop(self) -> None:
        """SIGTERM, as a service manager would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: nothing is written any more."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """It keeps its connections, accepts new ones (the kernel does), and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=_STOP_S)

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_S
        assert self._process is not None
        with self.client() as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    client.ping()  # refused while it loads its file
                    if client.info("server")["process_id"] == self._process.pid:
                        return True
                except redis.RedisError:
                    time.sleep(0.005)  # nothing tells when it listens; the next question does
        self.close()
        return False

    def _own_all_slots(self) -> None:
        with self.client() as client:
            if client.execute_command("CLUSTER INFO")["cluster_slots_assigned"] == "0":
                client.execute_command("CLUSTER ADDSLOTS", *range(_SLOTS))
            deadline = time.monotonic() + START_S
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                if time.monotonic() > deadline:
                    raise RuntimeError("the one-node cluster does not come up")
                time.sleep(0.005)

    def _command(self) -> list[str]:
        options = self.options
        command = [
            self._binary,
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--unixsocket",
            str(self.unix_socket),
        ]
        command += ["--save", "", "--daemonize", "no", "--logfile", str(self.folder / "log")]
        command += ["--maxmemory-policy", options.policy]
        if options.tls:
            command += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.folder / "key.pem")]
            command += ["--tls-ca-cert-file", str(self.certificate)]
        else:
            command += ["--port", str(self.port)]
        if options.password:
            command += ["--requirepass", options.password]
        if options.append_fsync:
            command += ["--appendonly", "yes", "--appendfsync", options.append_fsync]
        if options.maxmemory:
            command += ["--maxmemory", options.maxmemory]
        if options.cluster:
            command += ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
        return [*command, *options.more]


@contextmanager
def redis_server(**options: Any) -> Iterator[RedisServer]:
    """One running server; the fields of `Options` are its arguments. Its folder goes with it."""
    # Not pytest's folder: a Unix socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="cwm-redis-") as folder:
        server = RedisServer(Path(folder), Options(**options))
        try:
            server.start()
            yield server
        finally:
            server.close()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_certificate(folder: Path) -> Path:
    """Signed by its own key, for 127.0.0.1, for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's redis-server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path
