"""For every test: its own state directory, virtual time on request, and a check that it leaves nothing behind.

``@pytest.mark.virtual_time`` runs an async test on a :class:`asyncsync.testing.VirtualTimeLoop`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gcs_servers
import pytest
import servers
from onebench import Bench

from asyncsync.aio.threads import stop_threads
from asyncsync.testing import Faults, VirtualTimeLoop, inject_faults, reset_memory

LEAK_SECONDS = 2.0
"""Real seconds within which a server's threads and sockets must notice that their client has closed."""

_loops: list[asyncio.AbstractEventLoop] = []
_shared: set[str] = set()
_in_process: set[str] = set()
"""Servers that run in this process. moto keeps its objects in unnamed temporary files."""


def pytest_configure(config):
    # Else each Python that a test starts would compile the whole package again, in 0.2 s.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    config.addinivalue_line("markers", "virtual_time: the event loop's clock jumps instead of waiting")


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()  # else each collection looks through all tests and modules again, in 0.1 s


def pytest_asyncio_loop_factories(config, item):
    if item.get_closest_marker("virtual_time"):
        return {"virtual": _remembered(VirtualTimeLoop)}
    return {"real": _remembered(asyncio.new_event_loop)}


def _remembered(factory):
    def make():
        loop = factory()
        _loops[:] = [known for known in _loops if not known.is_closed()] + [loop]
        return loop

    return make


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "state"))
    for name in [
        name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "STORAGE_EMULATOR"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud-config"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    yield
    reset_memory()


@pytest.fixture
def faults() -> Faults:
    """Faults of ``memory://b``, which is empty."""
    reset_memory()
    return inject_faults("b")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An experiment on the store in memory."""
    reset_memory()
    yield Bench(tmp_path)
    reset_memory()


# Leaks: tasks are checked after the test function, everything else after its fixtures.


def _open_tasks() -> set[asyncio.Task]:
    return {task for loop in _loops if not loop.is_closed() for task in asyncio.all_tasks(loop) if not task.done()}


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    before = _open_tasks()
    result = yield
    if left := _open_tasks() - before:
        pytest.fail(f"the test leaves tasks behind: {sorted(map(repr, left))}", pytrace=False)
    return result


def held() -> set[str]:
    """Threads and descriptors of this process, as text."""
    found = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of this listing
        if not (_in_process and target.startswith(tempfile.gettempdir()) and target.endswith(" (deleted)")):
            found.add(f"descriptor {fd} {target}")
    return found


_before = pytest.StashKey[set[str]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[_before] = held()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    result = yield
    stop_threads()
    before = item.stash[_before]
    deadline, pause = time.monotonic() + LEAK_SECONDS, 0.001
    while left := held() - before - _shared:
        if time.monotonic() > deadline:
            pytest.fail(f"the test leaves behind: {sorted(left)}", pytrace=False)
        time.sleep(pause)  # a thread or a server's socket ends by itself
        if pause > 0.002:
            gc.collect()  # transports that only the collector closes would show as a leak of the next loop
        pause = min(2 * pause, 0.05)
    return result


@contextmanager
def shared() -> Iterator[None]:
    """Threads and descriptors opened in the block belong to the session, not to the first test that uses them."""
    before = held()
    yield
    _shared.update(held() - before)


def _server(name: str) -> Iterator[servers.S3Server]:
    if not servers.available(name):
        pytest.skip(f"{name} is not installed")
    with shared():
        context = servers.running(name)
        server = context.__enter__()
    try:
        yield server
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[servers.S3Server]:
    yield from _server("seaweedfs")


@pytest.fixture(scope="session")
def ministack() -> Iterator[servers.S3Server]:
    yield from _server("ministack")


@pytest.fixture(scope="session")
def moto() -> Iterator[servers.S3Server]:
    _in_process.add("moto")
    yield from _server("moto")


def _emulator(name: str) -> Iterator[gcs_servers.GcsServer]:
    if not gcs_servers.available(name):
        pytest.skip(f"{name} is not installed")
    with shared():
        context = gcs_servers.running(name, "conformance")
        server = context.__enter__()
    try:
        yield server
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def gcp_storage_emulator() -> Iterator[gcs_servers.GcsServer]:
    yield from _emulator("gcp-storage-emulator")


@pytest.fixture(scope="session")
def fake_gcs_server() -> Iterator[gcs_servers.GcsServer]:
    yield from _emulator("fake-gcs-server")


@pytest.fixture
def gcs_strict():
    """The strict fake, empty, with a bucket named ``conformance``."""
    gcs_fake = pytest.importorskip("gcs_fake")
    with gcs_fake.GcsFake("conformance") as running:
        yield running


@pytest.fixture
def azure_strict():
    """The strict fake of Azure, empty, with a container named ``conformance``."""
    pytest.importorskip("awscrt")
    azure_fake = pytest.importorskip("azure_fake")
    with azure_fake.AzureFake("conformance") as running:
        yield running


@pytest.fixture(scope="session")
def azurite():
    """Azurite with a container named ``conformance``."""
    pytest.importorskip("awscrt")
    from azure_fake import azurite as azurite_server

    if reason := azurite_server.why_missing():
        pytest.skip(reason)
    with shared():
        context = azurite_server.running("conformance")
        server = context.__enter__()
    try:
        yield server
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def sftp(tmp_path_factory):
    """An SFTP server for one directory."""
    for package in ("fsspec", "paramiko", "asyncssh"):
        pytest.importorskip(package)
    from sftp import SftpServer, usable

    if not usable():
        pytest.skip("another package than fsspec itself provides sftp")
    with shared():
        server = SftpServer(tmp_path_factory.mktemp("sftp")).__enter__()
    yield server
    server.__exit__()


@pytest.fixture(scope="session")
def on_uvloop():
    """A function that runs a coroutine on uvloop. The first run opens a pipe that the process keeps."""
    uvloop = pytest.importorskip("uvloop")

    def run(main):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)

    with shared():
        run(asyncio.sleep(0))
    return run
