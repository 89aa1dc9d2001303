"""Leases for tests, and bodies that are sent under them."""

from asyncsync.testing.conformance.leases import CountedLease, leased

__all__ = ["CountedLease", "leased"]
