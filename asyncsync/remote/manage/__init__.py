"""Private: work on whole prefixes of a store: list, copy, remove and diagnose them.

May import: ``remote``, ``sync``, ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``copy_objects.py``, which
copies from any store to any store.
"""
