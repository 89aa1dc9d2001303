"""Private: one trial at work: accept a checkpoint, upload it, commit it, register it, retire it; also with several
ranks.

May import: ``sync``, ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``state.py``.
"""
