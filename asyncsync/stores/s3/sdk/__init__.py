"""Private: S3 through aiobotocore. Imported only when needed: the import takes half a second.

Start reading at :mod:`.aiobotocore_client`. No other package imports aiobotocore or botocore.
"""
