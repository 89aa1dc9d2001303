"""Private: a directory as a store: local disk or a shared file system.

May import: ``stores.base``, ``disk``, ``planning``, ``aio``. Begin with ``store.py``.
"""
