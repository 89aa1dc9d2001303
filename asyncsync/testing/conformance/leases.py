"""A lease that expires at a chosen check, and bodies that are sent under it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

from asyncsync.disk.files import FileRange, LeasedBytes
from asyncsync.errors import LeaseExpiredError

BodyKind = Literal["memory", "file"]


class CountedLease:
    """A lease that expires at the ``last``-th check and stays expired; None: never."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last
        self.checks = self.kept = 0
        self._lock = threading.Lock()

    def check(self) -> None:
        """LeaseExpiredError once it has expired. Plain call, from any thread."""
        with self._lock:
            self.checks += 1
            if self.last is not None and self.checks >= self.last:
                raise LeaseExpiredError(f"the lease expired at check {self.last}")

    async def keep(self) -> None:
        """Count the call; nothing is renewed."""
        self.kept += 1


def leased(kind: str, data: bytes, lease: CountedLease, directory: Path) -> LeasedBytes | FileRange:
    """A body of ``data`` under ``lease``: in memory, or in a file below ``directory``."""
    if kind == "memory":
        body = LeasedBytes(data)
        body.lease = lease
        return body
    (directory / "leased").write_bytes(b"before" + data + b"after")
    return FileRange(str(directory / "leased"), 6, len(data), lease=lease)
