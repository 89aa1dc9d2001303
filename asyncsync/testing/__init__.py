"""The public test kit: a store in memory, injected faults, an event loop in virtual time, a proxy that breaks
connections, and the simulation of whole clusters. For authors of stores: :mod:`asyncsync.testing.conformance`.

Importing it registers ``memory://bucket/prefix`` as a storage path::

    from asyncsync.testing import MemoryStore, inject_faults, run_virtual

    async def main():
        faults = inject_faults("bucket")
        faults.fail(3, UnavailableError("the third request"))
        await push("runs/a", "memory://bucket/a")

    run_virtual(main())

May import: the public face, ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``memory.py``.
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
