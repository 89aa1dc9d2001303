"""Private: the Google Cloud Storage store. Start reading at :mod:`.store`.

Imports the HTTP client and the store interface; only :mod:`.auth` and :mod:`.proxy_transport` import gcloud-aio.
"""
