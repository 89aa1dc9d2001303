"""The log of a command: ``-v``, ``-vv``, ``--log-file`` and ``--log-json``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from asyncsync.errors import ConfigError

SHORTEST_SECRET = 6
"""Shorter values of options are not hidden: that would make a log unreadable."""
SECRET_NAMES = ("secret", "token", "password", "key", "credential", "signature", "sas", "connection")
"""Parts of the names of options whose values are hidden."""
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
"""By the number of ``-v``."""


class _Hiding(logging.Formatter):
    """Formats a record as text or as a JSON line, without the values of secret options."""

    def __init__(self, secrets: tuple[str, ...], *, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._secrets, self._as_json = secrets, as_json

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging."""
        if self._as_json:
            document = {
                "time": record.created,
                "level": record.levelname,
                "logger": record.name,
                "message": self._hidden(record.getMessage()),
            }
            if record.exc_info:
                document["traceback"] = self._hidden(self.formatException(record.exc_info))
            return json.dumps(document)
        return self._hidden(super().format(record))

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def secrets_of(options: Mapping[str, object]) -> tuple[str, ...]:
    """The values of options that may be secret, longest first."""
    found = {
        value
        for name, value in options.items()
        if isinstance(value, str) and len(value) >= SHORTEST_SECRET and any(part in name for part in SECRET_NAMES)
    }
    return tuple(sorted(found, key=len, reverse=True))


@contextmanager
def command_log(verbose: int, file: str | None, options: Mapping[str, object], *, as_json: bool) -> Iterator[None]:
    """Log the package to stderr, and to ``file`` in full, while the block runs. ConfigError if the file cannot be
    opened. Without ``-v`` and file nothing changes."""
    if not verbose and file is None and not as_json:
        yield
        return
    logger, formatter = logging.getLogger("asyncsync"), _Hiding(secrets_of(options), as_json=as_json)
    level = LEVELS[min(verbose, len(LEVELS) - 1)]
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setLevel(level)
    if file is not None:
        handlers.append(_opened(file))
    before = logger.level
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if file is not None else level)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _opened(file: str) -> logging.FileHandler:
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"invalid --log-file {file}: it cannot be written: {error}") from error
