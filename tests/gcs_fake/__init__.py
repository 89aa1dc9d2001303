"""A strict fake of the Cloud Storage JSON API, as its documentation describes it, for tests.

Emulators forgive: none checks all preconditions, some accept a wrong checksum, some publish half an upload. This one
refuses whatever the documentation does not allow. ``tests/stores/test_gcs_fake.py`` checks it, row by row, with the
page of the documentation that each row comes from.
"""

from gcs_fake.model import Bucket, StoredObject
from gcs_fake.server import Fault, GcsFake

__all__ = ["Bucket", "Fault", "GcsFake", "StoredObject"]
