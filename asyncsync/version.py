"""The version of this package; documents in the store name the one that wrote them."""

from __future__ import annotations

__version__ = "0.1.0"
