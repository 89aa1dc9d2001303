"""The verbs for what runs now: the engines of this machine, and a directory that is synced until Ctrl-C.

May import: the public face, ``cli``. Begin with ``engine_status.py``.
"""
