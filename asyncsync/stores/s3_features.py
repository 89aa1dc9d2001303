"""Which of the newer headers an S3 server knows. Each of them can be left out; which ones have to be is found out by
leaving out one after the other. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

_SENT = {
    "CreateMultipartUpload": ("whole", "checksum"),
    "CompleteMultipartUpload": ("size", "whole", "checksum"),
}
"""What each operation sends, in the order in which it is left out; others send the checksum only."""
_HEADERS = {"size": "x-amz-mp-object-size", "whole": "x-amz-checksum"}
_SWITCHES = {
    "size": "mp_object_size=False",
    "whole": "full_object_checksum=False",
    "checksum": 'checksum="none"',
}


@dataclass(frozen=True, slots=True)
class Features:
    """Which optional headers are sent."""

    checksum: bool = True
    """A CRC32C with every body."""
    whole: bool = True
    """The CRC32C of a whole multipart object."""
    size: bool = True
    """The size of a whole multipart object."""

    def common(self, other: Features) -> Features:
        """What both have."""
        return Features(*(getattr(self, f.name) and getattr(other, f.name) for f in fields(self)))

    def below(self, operation: str, refusal: str, *, insist: bool) -> Iterator[Features]:
        """What to try after a refusal: without what it names, without each by itself, with less and less. ``insist``:
        checksums are always sent."""
        usable = [name for name in _SENT.get(operation, ("checksum",)) if not insist or name == "size"]
        tried = {self}
        named = [self._less(name) for name in usable if _HEADERS.get(name, "?") in refusal.lower()]
        less, steps = self, []
        for name in usable:
            less = less._less(name)
            steps.append(less)
        for each in (*named, *map(self._less, usable), *steps):
            if each not in tried:
                tried.add(each)
                yield each

    def _less(self, name: str) -> Features:
        return replace(self, checksum=False, whole=False) if name == "checksum" else replace(self, **{name: False})

    def lost(self, now: Features) -> list[str]:
        """The storage options that say from the beginning what was found out."""
        return [switch for name, switch in _SWITCHES.items() if getattr(self, name) and not getattr(now, name)]


def advice(headers: Mapping[str, str], *, insist: bool) -> str:
    """What to do about a request that was refused as a whole, for the end of its error."""
    options = []
    if "if-none-match" in headers or "if-match" in headers:
        options.append("conditional_writes=False if the store has no conditional writes")
    if insist:
        options.append('checksum="auto" if it does not know the checksum')
    return f"; storage options that help: {', '.join(options)}" if options else ""
