"""Private: an HTTP/1.1 client for bulk data, shared by the S3 and GCS stores. Start reading at :mod:`.client`.

Imports asyncio tools, the disk and the store interface, never a store.
"""
