"""Private: the guard around every store: retries, circuit breaker, fence, and the shared limits of requests, memory and
bandwidth.

May import: ``stores.base``, ``stores.wrapped``, ``stores.http``, ``planning``, ``aio``. Begin with ``guarded.py``.
"""
