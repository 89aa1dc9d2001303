"""Private: fetch the files of a manifest, verify every byte, and put each file in place with one rename.

May import: ``stores``, ``disk``, ``planning``, ``aio``. Begin with ``tree_download.py``.
"""
