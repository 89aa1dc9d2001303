"""Private: the documents that asyncsync stores: records of trials and experiments, and manifests; one reader and one
writer for all of them.

May import: ``stores``, ``planning``, ``aio``. Begin with ``model.py``.
"""
