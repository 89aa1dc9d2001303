"""Private: the selection of files that a download takes from a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from asyncsync.errors import ConfigError
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.planning.patterns import compile_patterns

Patterns = str | Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to download, and whether the target may hold anything else."""

    include: tuple[str, ...] = ()
    """gitignore patterns, or paths; empty: all files."""
    exclude: tuple[str, ...] = ()
    """gitignore patterns of files to leave out; takes precedence over ``include``."""
    exact: bool = False
    """Remove everything else from the target."""
    below: str = ""
    """Only files below this directory of the tree, by their paths relative to it. Empty, or ends in ``/``."""
    only: str | None = None
    """Only this file of ``below``."""

    @classmethod
    def of(cls, include: Patterns = None, exclude: Patterns = None, *, exact: bool = False) -> Selection:
        """Check the arguments of a download; ConfigError if one is invalid."""
        selection = cls(_patterns("include", include), _patterns("exclude", exclude), exact)
        if exact and (selection.include or selection.exclude):
            raise ConfigError(
                "invalid exact=True with include or exclude: files that are not selected would be removed; drop one of "
                "the two"
            )
        try:
            selection.pick(Manifest())
        except ValueError as error:
            raise ConfigError(f"invalid include={include!r}, exclude={exclude!r}: {error}") from error
        return selection

    @property
    def takes_all(self) -> bool:
        """Whether no pattern selects."""
        return not (self.include or self.exclude)

    def inside(self, path: str, *, file: bool) -> Selection:
        """The same selection of one directory of a tree, or of one ``file``."""
        if not file:
            return replace(self, below=f"{path}/")
        directory, slash, name = path.rpartition("/")
        return replace(self, below=directory + slash, only=name)

    def pick(self, manifest: Manifest, prefix: str = "") -> Manifest:
        """The selected part of ``manifest``; its paths are relative to ``below``. Patterns match ``prefix`` + path."""
        if self.takes_all and not self.below and self.only is None:
            return manifest
        return Manifest(self._selected(self._files_below(manifest), prefix), manifest.info)

    def _files_below(self, manifest: Manifest) -> Mapping[str, FileEntry]:
        start = self.below
        if not start and self.only is None:
            return manifest.files
        inside = {path[len(start) :]: entry for path, entry in manifest.files.items() if path.startswith(start)}
        names = inside if self.only is None else {self.only} & inside.keys()
        return {name: structs.replace(inside[name], path=name) for name in names}

    def _selected(self, files: Mapping[str, FileEntry], prefix: str) -> dict[str, FileEntry]:
        wanted = compile_patterns(self.include) if self.include else None
        unwanted = compile_patterns(self.exclude)
        return {
            path: entry
            for path, entry in files.items()
            if (wanted is None or wanted.match_file(prefix + path)) and not unwanted.match_file(prefix + path)
        }


def _patterns(name: str, value: Patterns) -> tuple[str, ...]:
    found = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    if value is not None and not all(isinstance(item, str) and item.strip() for item in found or [""]):
        raise ConfigError(f"invalid {name}={value!r}: must be gitignore patterns, such as ['*.bin']")
    return found


EVERYTHING = Selection()
