"""Private: operations on stored experiments, from any machine: pull, restore, verify, repair, prune.

May import: ``sync``, ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``restore.py``.
"""
