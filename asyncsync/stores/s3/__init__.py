"""Private: Amazon S3 and servers that speak its protocol.

May import: ``stores.http``, ``stores.base``, ``disk``, ``planning``, ``aio``. Begin with ``store.py``. Only ``sdk`` may
import aiobotocore.
"""
