"""Private: the guard around every store: retries, circuit breaker, write leases, and the shared limits of requests,
memory and bandwidth.

May import: ``stores.base``, ``stores.wrapped``, ``stores.http``, ``planning``, ``aio``. Begin with ``guarded.py``.
``fenced.py`` has the lease under which a process writes.
"""
