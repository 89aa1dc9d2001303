"""Private: one experiment while it runs: enter, report, sync, flush and leave.

May import: ``remote``, ``sync``, ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``engine.py``. ``blocking`` is
imported only for ``SyncEngine.blocking()``.
"""
