"""The public test kit: an object store in memory, a store that fails on demand, an event loop without waiting, and a
proxy that does to connections what networks do.

Importing it makes ``memory://bucket/prefix`` a storage path like any other::

    from asyncsync.testing import MemoryStore, inject_faults, run_virtual

    async def main():
        faults = inject_faults("bucket")
        faults.fail(3, UnavailableError("the third request"))
        await push("runs/a", "memory://bucket/a")

    run_virtual(main())
"""

from asyncsync.testing.faulty import Fault, Faults, FaultyStore, Hang, inject_faults, reset_memory
from asyncsync.testing.memory import MemoryStore, Request
from asyncsync.testing.proxy import BreakRequest, BreakResponse, CannedResponse, FaultProxy, Flip, Stall
from asyncsync.testing.virtual import DeadlockError, VirtualTimeLoop, run_virtual

__all__ = [
    "BreakRequest",
    "BreakResponse",
    "CannedResponse",
    "DeadlockError",
    "Fault",
    "FaultProxy",
    "Faults",
    "FaultyStore",
    "Flip",
    "Hang",
    "MemoryStore",
    "Request",
    "Stall",
    "VirtualTimeLoop",
    "inject_faults",
    "reset_memory",
    "run_virtual",
]
