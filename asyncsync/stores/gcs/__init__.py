"""Private: Google Cloud Storage.

May import: ``stores.http``, ``stores.base``, ``disk``, ``planning``, ``aio``. Begin with ``store.py``. Only ``auth``
and ``proxy_transport`` may import gcloud-aio.
"""
