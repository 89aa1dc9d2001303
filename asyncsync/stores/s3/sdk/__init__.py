"""Private: S3 through aiobotocore: its credential chain, listings, and buckets that the signed requests do not support.

May import: ``stores.http``, ``stores.base``, ``disk``, ``planning``, ``aio``. Begin with ``aiobotocore_client.py``.
Imported only when needed, because importing aiobotocore takes half a second.
"""
