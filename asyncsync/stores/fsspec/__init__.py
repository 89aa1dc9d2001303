"""Private: any file system of fsspec: whole files, read back after each write.

May import: ``stores.base``, ``disk``, ``aio``. Begin with ``store.py``; ``files.py`` has the blocking work in threads.
Only ``connections`` imports fsspec.
"""
