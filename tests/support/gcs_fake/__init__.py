"""A strict fake of the Cloud Storage JSON API, as its documentation describes it, for tests.

Emulators forgive: none checks all preconditions, some accept a wrong checksum, some publish half an upload. This one
refuses whatever the documentation does not allow. :mod:`gcs_fake.documented` is the table that it is checked with: each
row names the page of the documentation that it comes from.
"""

from gcs_fake.model import Bucket, StoredObject
from gcs_fake.server import Fault, GcsFake

__all__ = ["Bucket", "Fault", "GcsFake", "StoredObject"]
