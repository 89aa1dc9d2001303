"""Real S3 servers on free ports of 127.0.0.1, for tests and for trying things by hand.

``with running("seaweedfs") as server:`` starts one, waits until its first PutObject succeeds, and stops it by its
process id. SeaweedFS is the reference, ministack the second opinion, moto the third where checksums and signatures do
not matter (it accepts any). Plain blocking code: use it from a fixture, not on an event loop.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import google_crc32c

NAMES = ("seaweedfs", "ministack", "moto")
READY_SECONDS = 60.0
"""Most seconds a server may take to accept its first PutObject; SeaweedFS needs about one on an idle machine."""


class ServerError(RuntimeError):
    """A server did not start; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class S3Server:
    """A running server. ``log`` is its log file (None: it has none)."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    log: Path | None = None
    pid: int | None = None

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def storage_options(self) -> dict[str, object]:
        """Options for ``open_store("s3://bucket/prefix", options=...)``."""
        return {
            "endpoint_url": self.endpoint,
            "region": "us-east-1",
            "access_key": self.access_key,
            "secret_key": self.secret_key,
        }

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A blocking botocore client that makes one attempt per call."""
        from botocore.config import Config
        from botocore.session import Session

        config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
        client = Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )
        try:
            yield client
        finally:
            client.close()

    def create_bucket(self, bucket: str) -> str:
        """Create ``bucket`` unless it exists; returns its name. Blocks."""
        from botocore.exceptions import ClientError

        with self.client() as client:
            try:
                client.create_bucket(Bucket=bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise
        return bucket


def available(name: str) -> bool:
    """Whether the package of this server is installed."""
    if name == "moto":
        with suppress(ImportError):
            import moto.server  # noqa: F401

            return True
        return False
    return _executable({"seaweedfs": "weed", "ministack": "ministack"}[name]) is not None


@contextmanager
def running(name: str, directory: Path | None = None, *, port: int | None = None) -> Iterator[S3Server]:
    """Run one of ``NAMES`` until the block is left.

    ``directory`` keeps SeaweedFS's data, so that a second start on it finds them again; by default a temporary one.
    ``port`` fixes the S3 port, for a test that stops a server and starts it again in the same place.
    """
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as scratch:
        chosen = port or _free_ports(1)[0]
        starter: Callable[[Path, int], Any] = {"seaweedfs": _seaweedfs, "ministack": _ministack, "moto": _moto}[name]
        with starter(directory or Path(scratch), chosen) as server:
            yield server


@contextmanager
def _seaweedfs(directory: Path, port: int) -> Iterator[S3Server]:
    directory.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "t",
        "credentials": [{"accessKey": "testkey", "secretKey": "testsecret"}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    kinds = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = dict(zip((*kinds, "s3.port.grpc", "admin.port", "admin.port.grpc"), _free_ports(9), strict=True))
    command = [
        _executable("weed") or "weed",
        *("-logtostderr", "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={port}"),
        *(f"-{flag}={value}" for flag, value in ports.items()),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-webdav=false", "-admin.ui=false"),
        *("-s3.autoCreateBucket=false", f"-s3.config={config}"),
    ]
    with _process(command, directory, {"GOMEMLIMIT": "400MiB"}) as (process, log):
        server = S3Server("seaweedfs", f"http://127.0.0.1:{port}", "testkey", "testsecret", log, process.pid)
        _wait_ready(server, process)
        yield server


@contextmanager
def _ministack(directory: Path, port: int) -> Iterator[S3Server]:
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"AUTH": "true", "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "GATEWAY_PORT": str(port)}
    with _process([_executable("ministack") or "ministack"], directory, settings) as (process, log):
        server = S3Server("ministack", f"http://127.0.0.1:{port}", "test", "test", log, process.pid)
        _wait_ready(server, process)
        yield server


@contextmanager
def _moto(directory: Path, port: int) -> Iterator[S3Server]:
    from moto.server import ThreadedMotoServer

    _teach_crc32c()
    del directory
    running_server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running_server.start()
    try:
        server = S3Server("moto", f"http://127.0.0.1:{port}", "test", "test")
        _wait_ready(server, None)
        yield server
    finally:
        running_server.stop()


def _teach_crc32c() -> None:
    """Without a module of this name moto returns CRC32 where CRC32C is requested."""
    module = ModuleType("crc32c")
    module.__spec__ = ModuleSpec("crc32c", None)
    module.crc32c = google_crc32c.value  # type: ignore[attr-defined]
    sys.modules.setdefault("crc32c", module)


@contextmanager
def _process(
    command: list[str], directory: Path, settings: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = directory / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | dict(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate this process, and kill it after a second: the data survive that."""
    process.terminate()
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_ready(server: S3Server, process: subprocess.Popen[bytes] | None) -> None:
    """Wait for a first PutObject. An open port is not enough: servers respond 500 while their parts connect."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + READY_SECONDS
    bucket = "ready"
    while True:
        if process is not None and process.poll() is not None:
            raise ServerError(f"{server.name} ended with code {process.returncode}: {_tail(server.log)}")
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=1):
                pass
            server.create_bucket(bucket)
            with server.client() as client:
                client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
        except (OSError, BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise ServerError(f"{server.name} is not ready after {READY_SECONDS:g} s: {error}") from error
            time.sleep(0.1)
        else:
            return


def _tail(log: Path | None) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:] if log else ""


def _executable(name: str) -> str | None:
    """Path of a program, beside the interpreter first: the environment of the tests need not be activated."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _free_ports(count: int) -> list[int]:
    """Free ports. All are bound before any is released, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in held]
    finally:
        for each in held:
            each.close()
