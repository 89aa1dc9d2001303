"""A strict fake of the Cloud Storage JSON API, as its documentation describes it, for tests.

Emulators are lenient: none checks all preconditions, some accept a wrong checksum, some publish an incomplete upload.
This fake refuses whatever the documentation does not allow. :mod:`gcs_fake.documented` is the table that checks it:
each row names the page of the documentation that states it.
"""

from http_fake import Fault

from gcs_fake.model import Bucket, StoredObject
from gcs_fake.server import GcsFake

__all__ = ["Bucket", "Fault", "GcsFake", "StoredObject"]
