"""The verbs for the command itself: its settings, completion in a shell, and a check of a store.

May import: the public face, ``cli``. Begin with ``doctor.py``.
"""
