"""Private: the large files of a transfer that are in flight, and how far each is."""

from __future__ import annotations

from asyncsync.events import FileProgress

FILES_SHOWN = 8
"""Files in one progress event: a bar for each fits on a terminal. Memory is one small entry for each file in flight."""


class FilesInFlight:
    """Counts the bytes of each file between ``begin`` and ``end``."""

    __slots__ = ("_done", "_sizes")

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def begin(self, path: str, size: int) -> None:
        """The transfer of a file of this size begins, or begins again."""
        self._sizes[path], self._done[path] = size, 0

    def add(self, path: str, count: int) -> None:
        """So many more bytes of the file are there. Ignored after its end."""
        if path in self._done:
            self._done[path] += count

    def end(self, path: str) -> None:
        """The file is complete, or has failed."""
        self._sizes.pop(path, None)
        self._done.pop(path, None)

    def shown(self, prefix: str = "") -> tuple[FileProgress, ...]:
        """The files that began first, by their path below ``prefix``."""
        first = list(self._sizes.items())[:FILES_SHOWN]
        return tuple(FileProgress(prefix + path, min(self._done[path], size), size) for path, size in first)
