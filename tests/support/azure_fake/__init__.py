"""A strict fake of Azure Blob Storage, as its documentation describes it, for tests.

Azurite is lenient: it accepts a block list with a wrong CRC64, more than 50,000 blocks, and blocks that a Put Blob has
dropped; and it cannot copy with a SAS of the account or with a token. This fake checks every signature by itself and
refuses whatever the documentation does not allow.
"""

from http_fake import Fault

from azure_fake.model import Blob, Container
from azure_fake.server import ACCOUNT, KEY, AzureFake

__all__ = ["ACCOUNT", "KEY", "AzureFake", "Blob", "Container", "Fault"]
