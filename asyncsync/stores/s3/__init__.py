"""Private: the S3 store. Start reading at :mod:`.store`.

Imports the HTTP client and the store interface; only :mod:`.sdk` imports aiobotocore.
"""
