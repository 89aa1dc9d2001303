"""Which bytes of an object a response to GetObject carries. Every byte is checked by whoever asked for it, so it may
come in chunks without a length, and as a whole where the whole was asked for; another range is refused at once."""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncsync.errors import StoreError
from asyncsync.stores.base import Piece, Sink
from asyncsync.stores.http1_answer import is_number

_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class Incoming:
    """One response. ``length``: of the range that was asked for, None: to the end. ``total`` is the size of the object,
    once all has come."""

    __slots__ = ("_got", "_length", "_sink", "_start", "_where", "_whole", "total")

    def __init__(self, where: str, start: int, length: int | None, sink: Sink) -> None:
        self._where, self._start, self._length, self._sink = where, start, length, sink
        self._got, self._whole = 0, False
        self.total = 0

    def expect(self, status: int, headers: Mapping[str, str]) -> int | None:
        """How many bytes must come; None: as many as there are. StoreError: it is not what was asked for."""
        said = headers.get("content-range")
        come = self._of_range(said or "") if status == 206 else self._of_whole(headers)
        text = headers.get("content-length")
        if come is not None and text is not None and is_number(text) and int(text) != come:
            raise StoreError(f"{self._where}: {text} bytes are to come for the range {said!r}")
        return come

    def _of_range(self, said: str) -> int:
        found = _RANGE.fullmatch(said)
        if found is None:
            raise StoreError(f"{self._where}: HTTP 206 with the range {said[:60]!r}")
        first, last, self.total = map(int, found.groups())
        end = self.total if self._length is None else min(self._start + self._length, self.total)
        if (first, last + 1) != (self._start, end):
            raise StoreError(f"{self._where}: the range {said!r} came, bytes {self._start}-{end - 1} were asked for")
        return end - first

    def _of_whole(self, headers: Mapping[str, str]) -> int | None:
        text = headers.get("content-length")
        size = int(text) if text is not None and is_number(text) else None
        if self._start or (self._length is not None and size is not None and size > self._length):
            raise StoreError(f"{self._where}: the store ignored the requested range")
        if size is None and "transfer-encoding" not in headers:
            raise StoreError(f"{self._where}: the response has neither Content-Length nor chunks")
        self._whole = size is None
        self.total = size or 0
        return size

    async def take(self, piece: Piece) -> None:
        """Give a piece to the sink. StoreError: there are more bytes than were asked for."""
        self._got += len(piece)
        if self._length is not None and self._got > self._length:
            raise StoreError(f"{self._where}: more than the {self._length} bytes came that were asked for")
        if self._whole:
            self.total = self._got
        await self._sink(piece)
