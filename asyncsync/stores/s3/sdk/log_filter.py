"""Keeps secrets out of the debug log of botocore, which writes the headers of every request."""

from __future__ import annotations

import logging
import re

_SECRET_HEADER = re.compile(
    r"((?:x-amz-security-token|server-side-encryption-customer-key|SSECustomerKey|X-Amz-Security-Token)"
    r"[\"']?[:=]\s?b?[\"']?)[A-Za-z0-9+/=_-]{8,}",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text without customers' keys and session tokens."""
    return _SECRET_HEADER.sub(r"\1***", text)


class _SecretFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        shown = redact(text)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


_FILTER = _SecretFilter()


def redact_logs() -> None:
    """Filter every logger of botocore and aiobotocore that exists. Safe to call again."""
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "aiobotocore"):
            logging.getLogger(name).addFilter(_FILTER)
