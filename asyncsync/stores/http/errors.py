"""Errors of HTTP exchanges, shared by every store that speaks HTTP."""

from __future__ import annotations

UNTRUSTED_ADVICE = "; if your own authority signed it, name its CA file by the storage option verify"
"""Ends the message of an untrusted certificate."""


class BrokenError(Exception):
    """The exchange broke: no connection, a reset, a stall, or a response that is not HTTP. The server may have carried
    out the request."""


class NotReceivedError(BrokenError):
    """The peer's kernel acknowledged no byte of the request; resending is safe."""


class UntrustedCertificateError(BrokenError):
    """The server's certificate is not trusted for its name. A retry cannot succeed."""
