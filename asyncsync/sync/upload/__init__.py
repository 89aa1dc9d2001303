"""Private: send the planned changes of a tree: small files, parts of large files, copies inside the store.

May import: ``sync.records``, ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``tree_upload.py``.
"""
