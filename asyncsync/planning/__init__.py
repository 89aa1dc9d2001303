"""Private: decisions as pure functions: what changed, what to send or copy, when to sync, what to keep. No event loop,
no clock, no disk.

May import: nothing but the vocabulary. Begin with ``changes.py``.
"""
