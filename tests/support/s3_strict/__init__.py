"""A strict fake of S3, as the API reference describes it, for tests of the options of the store.

SeaweedFS and moto ignore most of these headers; this fake refuses each one that its operation does not have, that is
not signed, or that contradicts the object.
"""

from s3_strict.server import StrictS3

__all__ = ["StrictS3"]
