"""Private: a storage path that stays open: single files, directories, and checkpoints that several processes write. For
integrations of frameworks that bring their own directories and names; ``asyncsync.Storage`` is its public name.

May import: ``remote``, ``sync``, ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``storage.py``.
"""
