"""The file in which the controller of Ray Train registers the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Its name, in the directory of the run."""
NAME = "checkpoint_dir_name"
"""Key of a checkpoint's name, wherever it occurs in that file."""


def names_in(document: Any) -> Iterator[str]:
    """The names of all checkpoints that the document names."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == NAME and isinstance(value, str):
                yield value
            else:
                yield from names_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from names_in(value)
