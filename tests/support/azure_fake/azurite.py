"""Azurite, Microsoft's emulator of Azure Storage, on a free port of 127.0.0.1, in a process of its own.

It is a package of npm: ``npm install azurite@3.37``, with Node 20 or later. It is found as ``azurite-blob`` on the
``PATH`` or below the directory ``AZURITE_HOME``. Azurite writes blobs to disk some seconds after it has acknowledged
them, so a test that kills it loses them. Plain blocking code.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
READY_SECONDS = 60.0


@dataclass(frozen=True)
class Azurite:
    """A running Azurite."""

    endpoint: str
    pid: int

    @property
    def storage_options(self) -> dict[str, object]:
        """Options for ``open_store("az://container/prefix", options=...)``."""
        return {"account": ACCOUNT, "account_key": KEY, "endpoint_url": f"{self.endpoint}/{ACCOUNT}"}

    def create_container(self, name: str) -> None:
        """Create a container unless it exists. Blocks."""
        status, text = self.send("PUT", f"/{ACCOUNT}/{name}", "restype=container")
        if status not in (201, 409):
            raise RuntimeError(f"Azurite refused to create {name}: {status} {text}")

    def send(self, method: str, path: str, query: str = "", body: bytes = b"", **more: str) -> tuple[int, bytes]:
        """One signed request; its status and body. Further headers by name, with underscores for dashes."""
        import http.client
        from email.utils import formatdate

        from azure_fake.access import hmac_text, string_to_sign

        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        headers["content-length"] = str(len(body))
        target = f"{path}?{query}" if query else path
        text = string_to_sign(ACCOUNT, method, target, headers)
        headers["authorization"] = f"SharedKey {ACCOUNT}:{hmac_text(KEY, text)}"
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def executable() -> str | None:
    """Path of Azurite's program; None if it is not installed."""
    home = os.environ.get("AZURITE_HOME", "/opt/azurite")
    beside = Path(home) / "node_modules" / ".bin" / "azurite-blob"
    return str(beside) if beside.exists() else shutil.which("azurite-blob")


def why_missing() -> str:
    """Why Azurite cannot run here; empty: it can."""
    if shutil.which("node") is None:
        return "Node is not installed, which Azurite needs"
    return "" if executable() else "Azurite is not installed: npm install azurite@3.37, and set AZURITE_HOME"


@contextmanager
def running(
    *containers: str, port: int = 0, directory: Path | None = None, any_version: bool = False
) -> Iterator[Azurite]:
    """Run Azurite until the block is left. In memory, unless ``directory`` keeps its blobs. ``any_version``: also for
    clients of a newer version of the service."""
    port = port or _free_port()
    with tempfile.TemporaryDirectory(prefix="azurite-") as scratch:
        place = ["--location", str(directory)] if directory else ["--inMemoryPersistence"]
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", "--disableTelemetry", *place]
        options += ["--skipApiVersionCheck"] * any_version
        with open(f"{scratch}/log", "wb") as log:
            process = subprocess.Popen(
                [executable() or "azurite-blob", *options],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            server = Azurite(f"http://127.0.0.1:{port}", process.pid)
            _wait_ready(server, process)
            for container in containers:
                server.create_container(container)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(server: Azurite, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"Azurite ended with code {process.returncode}")
        try:
            server.create_container("ready")
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
