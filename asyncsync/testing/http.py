"""Enough of HTTP/1.1 to find where a message begins and ends; every byte is kept as received."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

BODY_CHUNK = 1 << 16
"""Largest piece of a body in bytes."""
_NO_BODY = frozenset({204, 304})


@dataclass(frozen=True)
class Head:
    """First line and headers of a message."""

    raw: bytes
    line: str
    headers: dict[str, str]
    """Names in lower case."""

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.line.partition(" ")[0]

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.line.split(" ", 2)[1])

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection after this message."""
        option = self.headers.get("connection", "").lower()
        return option == "close" or (self.line.startswith("HTTP/1.0") and option != "keep-alive")

    def request_body(self, reader: asyncio.StreamReader) -> Body:
        """The body of a request."""
        return Body(reader, self._length or 0, chunked=self._chunked)

    def response_body(self, reader: asyncio.StreamReader, method: str) -> Body:
        """The body of the response to a request with ``method``."""
        if method == "HEAD" or self.status in _NO_BODY:
            return Body(reader, 0, chunked=False)
        return Body(reader, self._length, chunked=self._chunked)

    @property
    def _length(self) -> int | None:
        text = self.headers.get("content-length", "")
        return int(text) if text.isdigit() else None

    @property
    def _chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The head of the next message; None if the peer closed the connection before it."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return Head(raw, lines[0], {name.lower(): value.strip() for name, _, value in pairs})


class Body:
    """A body as received: of known length, in chunks, or (``length=None``) until the connection ends."""

    def __init__(self, reader: asyncio.StreamReader, length: int | None, *, chunked: bool) -> None:
        self.is_framed = chunked or length is not None
        self._reader, self._chunked = reader, chunked
        self._left = 0 if chunked else length
        self._ended = False

    async def read(self) -> tuple[bytes, int]:
        """The next bytes, and how many of them are content: all, or none if they frame a chunk.

        Empty at the end; IncompleteReadError if the peer closes before it.
        """
        if self._chunked and not self._left:
            return await self._frame(), 0
        if self._left == 0:
            return b"", 0
        data = await self._reader.read(BODY_CHUNK if self._left is None else min(BODY_CHUNK, self._left))
        if self._left is not None:
            if not data:
                raise asyncio.IncompleteReadError(b"", self._left)
            self._left -= len(data)
        return data, len(data)

    async def _frame(self) -> bytes:
        """The bytes between two chunks: the end of one and the size of the next."""
        if self._ended:
            return b""
        raw = line = await self._reader.readuntil(b"\r\n")
        if line == b"\r\n":
            line = await self._reader.readuntil(b"\r\n")
            raw += line
        self._left = int(line.split(b";")[0], 16)
        if not self._left:
            self._ended = True
            while line != b"\r\n":
                line = await self._reader.readuntil(b"\r\n")
                raw += line
        return raw
