"""Private: the only door to the local disk: scan, hash, read, write and rename; and the journal of everything that must
survive a crash.

May import: ``planning``, ``aio``. Begin with ``scan.py``.
"""
