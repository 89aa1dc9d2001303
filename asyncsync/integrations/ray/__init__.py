"""Public, optional: asyncsync as the storage of Ray Train and Ray Tune. asyncsync itself never imports Ray.

May import: Ray, pyarrow, the public face of asyncsync. Begin with ``filesystem.py``.
"""

from typing import Any

from asyncsync.integrations.run_address import missing

try:
    import pyarrow.fs  # noqa: F401  Ray brings it along
except ModuleNotFoundError as error:
    raise missing("Ray with pyarrow", "ray", error) from error

from asyncsync.integrations.ray.settings import address, restore_options, storage, uri

__all__ = ["Commit", "address", "agents", "events", "restore_options", "storage", "upload", "uri"]


def __getattr__(name: str) -> Any:
    """``upload``, ``Commit`` and the like use Ray, which is imported with the first of them."""
    if name in {"Commit", "upload"}:
        from asyncsync.integrations.ray import uploading

        return getattr(uploading, name)
    if name in {"agents", "events"}:
        from asyncsync.integrations.ray.agent import monitor

        return getattr(monitor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
