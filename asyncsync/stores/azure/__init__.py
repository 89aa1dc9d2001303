"""Private: Azure Blob Storage.

May import: ``stores.http``, ``stores.base``, ``stores.options``, ``disk``, ``aio``, ``planning``. Begin with
``store.py``; ``requests.py`` has the requests, ``block_ids.py`` the names of blocks, ``errors.py`` the map of errors.
"""
