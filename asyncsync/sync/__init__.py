"""Private: keep one directory and one prefix equal: when to sync, and one sync from scan to manifest.

May import: ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``syncer.py``.
"""
