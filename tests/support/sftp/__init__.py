"""An SFTP server on a free port of 127.0.0.1, in a thread of its own: asyncssh serves one directory."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import asyncssh

USER, PASSWORD = "tester", "TOPSECRET"


def usable() -> bool:
    """Whether sftp means the file system of fsspec itself, whose options the tests use."""
    import fsspec

    return bool(fsspec.get_filesystem_class("sftp").__module__ == "fsspec.implementations.sftp")


class _Login(asyncssh.SSHServer):
    def __init__(self, connections: list[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


class SftpServer:
    """Use as ``with SftpServer(directory) as server``; then ``server.uri`` is the address of that directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="sftp-server")
        self._ready = threading.Event()
        self._connections: list[asyncssh.SSHServerConnection] = []
        self.port = 0

    @property
    def uri(self) -> str:
        return f"fsspec+sftp://{USER}@127.0.0.1:{self.port}/data"

    @property
    def storage_options(self) -> dict[str, object]:
        return {"password": PASSWORD, "look_for_keys": False, "allow_agent": False}

    def __enter__(self) -> SftpServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for connection in self._connections:
            connection.abort()
            self._loop.run_until_complete(connection.wait_closed())
        self._loop.run_until_complete(server.wait_closed())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _start(self) -> asyncssh.SSHAcceptor:
        root = str(self._directory)
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Login(self._connections),
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=root),
            allow_scp=False,
        )
        self.port = server.get_port()
        return server
