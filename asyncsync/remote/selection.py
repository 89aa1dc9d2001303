"""Private: the selection of files that a download takes from a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncsync.disk.scan import compile_patterns
from asyncsync.errors import ConfigError
from asyncsync.planning.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to download, and whether the target may hold anything else."""

    include: tuple[str, ...] = ()
    """gitignore patterns, or paths; empty: all files."""
    exact: bool = False
    """Remove everything else from the target."""

    @classmethod
    def of(cls, include: str | Sequence[str] | None = None, *, exact: bool = False) -> Selection:
        """Check the arguments of a download; ConfigError if one is invalid."""
        patterns = () if include is None else (include,) if isinstance(include, str) else tuple(include)
        if include is not None and not all(isinstance(item, str) and item.strip() for item in patterns or [""]):
            raise ConfigError(f"invalid include={include!r}: must be gitignore patterns, such as ['*.bin']")
        if patterns and exact:
            raise ConfigError(
                "invalid exact=True with include: files that are not included would be removed; drop one of the two"
            )
        selection = cls(patterns, exact)
        try:
            selection.pick(Manifest())
        except ValueError as error:
            raise ConfigError(f"invalid include={include!r}: {error}") from error
        return selection

    def pick(self, manifest: Manifest) -> Manifest:
        """The selected part of ``manifest``."""
        if not self.include:
            return manifest
        spec = compile_patterns(self.include)
        files = {path: entry for path, entry in manifest.files.items() if spec.match_file(path)}
        return Manifest(files, manifest.info)


EVERYTHING = Selection()
