"""Private: requests of the S3 store through aiobotocore. Imported only when needed: the import takes half a second."""
