"""Optional headers that some S3 servers refuse. The store finds out which ones by leaving out one after the other."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from asyncsync.errors import UnsupportedError

log = logging.getLogger("asyncsync")
_T = TypeVar("_T")

_SENT = {
    "CreateMultipartUpload": ("whole", "checksum"),
    "CompleteMultipartUpload": ("size", "whole", "checksum"),
}
"""Optional headers of each operation, in the order in which they are left out; other operations send only the
checksum."""
_HEADERS = {"size": "x-amz-mp-object-size", "whole": "x-amz-checksum"}
_SWITCHES = {
    "size": "mp_object_size=False",
    "whole": "full_object_checksum=False",
    "checksum": 'checksum="none"',
}
"""Storage options that leave out each header from the start."""


class RefusedHeaderError(UnsupportedError):
    """The store does not implement ``header``, which its message names."""

    def __init__(self, message: str, header: str) -> None:
        super().__init__(message)
        self.header = header


@dataclass(frozen=True, slots=True)
class OptionalHeaders:
    """Which optional headers are sent."""

    checksum: bool = True
    """The CRC32C of every body."""
    whole: bool = True
    """The CRC32C of a whole multipart object."""
    size: bool = True
    """The size of a whole multipart object."""

    def common(self, other: OptionalHeaders) -> OptionalHeaders:
        """The headers in both."""
        return OptionalHeaders(*(getattr(self, f.name) and getattr(other, f.name) for f in fields(self)))

    def alternatives(self, operation: str, refused: str, *, insist: bool) -> Iterator[OptionalHeaders]:
        """The headers to try after a refusal: without the ``refused`` one, without each one, then fewer and fewer.
        ``insist``: always send checksums."""
        usable = [name for name in _SENT.get(operation, ("checksum",)) if not insist or name == "size"]
        tried = {self}
        named = [self.without(name) for name in usable if refused.startswith(_HEADERS.get(name, "?"))]
        fewer, steps = self, []
        for name in usable:
            fewer = fewer.without(name)
            steps.append(fewer)
        for each in (*named, *map(self.without, usable), *steps):
            if each not in tried:
                tried.add(each)
                yield each

    def without(self, name: str) -> OptionalHeaders:
        """Without one header; without ``checksum``, ``whole`` is useless."""
        return replace(self, checksum=False, whole=False) if name == "checksum" else replace(self, **{name: False})

    def lost(self, now: OptionalHeaders) -> list[str]:
        """The storage options that leave out from the start the headers missing in ``now``."""
        return [switch for name, switch in _SWITCHES.items() if getattr(self, name) and not getattr(now, name)]


class HeaderNegotiation:
    """The optional headers that one store has not refused yet. ``changed`` is called when there are fewer. ``insist``:
    checksums are always sent."""

    def __init__(self, uri: str, headers: OptionalHeaders, *, insist: bool, changed: Callable[[], None]) -> None:
        self._uri, self._insist, self._changed = uri, insist, changed
        self.current = headers

    async def run(
        self, operation: str, required: Mapping[str, str], once: Callable[[OptionalHeaders], Awaitable[_T]]
    ) -> _T:
        """Call ``once`` with the optional headers to send, and again with fewer if the store refuses the request.
        ``required``: the other headers, for the advice in an error."""
        used = self.current
        try:
            return await once(used)
        except UnsupportedError as error:
            return await self.retry_with_fewer(error, operation, used, required, once)

    async def retry_with_fewer(
        self,
        error: UnsupportedError,
        operation: str,
        used: OptionalHeaders,
        required: Mapping[str, str],
        once: Callable[[OptionalHeaders], Awaitable[_T]],
    ) -> _T:
        """Headers without which the request succeeds are never sent again. A request that is refused in any case
        changes nothing."""
        now = self.current  # another request may have learned it meanwhile
        refused = error.header if isinstance(error, RefusedHeaderError) else ""
        alternatives = used.alternatives(operation, refused, insist=self._insist)
        for fewer in alternatives if now == used else (now, *alternatives):
            try:
                done = await once(fewer)
            except UnsupportedError:
                continue
            self._keep(fewer, error)
            return done
        raise UnsupportedError(f"{error}{_advice(required, insist=self._insist)}") from error

    def _keep(self, fewer: OptionalHeaders, error: UnsupportedError) -> None:
        before, self.current = self.current, self.current.common(fewer)
        self._changed()
        if lost := before.lost(self.current):
            log.warning("%s refuses a header; it is left out from now on, as with %s: %s", self._uri, lost, error)


def _advice(required: Mapping[str, str], *, insist: bool) -> str:
    """Storage options that may help against a refused request, for the end of its error."""
    options = []
    if "if-none-match" in required or "if-match" in required:
        options.append("conditional_writes=False if the store has no conditional writes")
    if insist:
        options.append('checksum="auto" if it does not know the checksum')
    return f"; storage options that help: {', '.join(options)}" if options else ""
