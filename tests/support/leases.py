"""Leases for tests, and bodies that are sent under them."""

import threading

from asyncsync.disk.files import FileRange, LeasedBytes
from asyncsync.errors import LeaseExpiredError


class CountedLease:
    """A lease that has expired from its ``last``-th check on (None: never)."""

    def __init__(self, last=None):
        self.last, self.checks, self.kept = last, 0, 0
        self._lock = threading.Lock()

    def check(self):
        with self._lock:
            self.checks += 1
            if self.last is not None and self.checks >= self.last:
                raise LeaseExpiredError(f"expired at look {self.last}")

    async def keep(self):
        self.kept += 1


def leased(kind, data, lease, directory):
    """A body of ``data``, in memory or in a file below ``directory``."""
    if kind == "memory":
        body = LeasedBytes(data)
        body.lease = lease
        return body
    (directory / "leased").write_bytes(b"before" + data + b"after")
    return FileRange(str(directory / "leased"), 6, len(data), lease=lease)
