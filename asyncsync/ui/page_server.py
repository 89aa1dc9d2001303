"""Serve the page of an experiment on this machine."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from asyncsync.config import TransferConfig, split_sas
from asyncsync.errors import ConfigError
from asyncsync.stores import open_store
from asyncsync.ui.access_gate import AccessGate
from asyncsync.ui.html_page import plotly_script
from asyncsync.ui.live_experiment import LiveExperiment

HOST = "127.0.0.1"
CLOSE_SECONDS = 1
"""Longest time for requests in flight when the server ends, seconds."""


@asynccontextmanager
async def serve(
    uri: str | os.PathLike[str],
    *,
    port: int = 0,
    allow_changes: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig | None = None,
) -> AsyncIterator[str]:
    """Serve the page of the experiment at ``uri`` during the block; ``async with serve(uri) as address``.

    The address contains a token: every user of this machine who knows it sees the page. The store is first read when
    the block begins, and a store that cannot be read is shown on the page.

    Args:
        uri: of an experiment.
        port: 0 for a free one.
        allow_changes: whether the page may verify, pin and retire checkpoints.

    Raises:
        ConfigError: the port is taken, the URI or an option is unknown, or ``asyncsync[ui]`` is not installed.
        BaseExceptionGroup: the block and the server failed; a single error is raised without a group.
    """
    plotly_script()
    address, options = split_sas(os.fspath(uri), storage_options)
    open_store(address, options=options)  # raises if it never can
    source = LiveExperiment(address.rstrip("/"), options, transfer or TransferConfig(), allow_changes)
    token = secrets.token_urlsafe(24)
    with _listening(port) as listener:
        port = listener.getsockname()[1]
        server = _server(source, token, port)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(source.run(), name="page data")
                serving = tasks.create_task(server.serve(sockets=[listener]), name="page server")
                try:
                    yield f"http://{HOST}:{port}/{token}/"
                finally:
                    reading.cancel()
                    source.close()
                    server.should_exit = True
                    await asyncio.wait([serving], timeout=2 * CLOSE_SECONDS)
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) > 1:
                raise
            (only,) = errors.exceptions
            raise only from only.__cause__  # without the group around it


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"invalid --port {port}: {HOST}:{port} cannot be opened: {error}") from error
        listener.listen(64)
        listener.setblocking(False)
        yield listener


def _server(source: LiveExperiment, token: str, port: int) -> Any:
    try:
        import uvicorn

        from asyncsync.ui.routes import application
    except ImportError as error:
        raise ConfigError("the page needs starlette and uvicorn: pip install 'asyncsync[ui]'") from error

    class PageServer(uvicorn.Server):
        """Leaves signals to the program that serves."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        AccessGate(application(source), token, port),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return PageServer(config)
