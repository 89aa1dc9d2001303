"""Private: the experiment while it runs. Begin with ``engine.py`` (:class:`asyncsync.SyncEngine`) and ``trial.py``
(:class:`asyncsync.Trial`); ``drain.py`` makes everything durable at the end, ``trials/`` is one trial at work. It
imports ``remote``, ``sync``, ``stores`` and what is below them."""
