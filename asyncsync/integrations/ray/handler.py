"""asyncsync as a file system of pyarrow, for Ray's calls on single files, listings and deletions."""

from __future__ import annotations

import io
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from asyncsync import ConfigError, StoredEntry
from asyncsync.integrations.ray import registration
from asyncsync.integrations.ray.agent import agent_handle, operations
from asyncsync.integrations.ray.agent.address import Address

T = TypeVar("T")
MARKER = ".validate_storage_marker"
"""Ray writes this file into each experiment, and looks for it before every upload of a checkpoint."""
SPOOLED = 8 << 20
"""Bytes of a written file that are kept in memory; a larger one goes through a temporary file."""
READ_AHEAD = 1 << 20
"""Bytes of a request of a file that is read in small pieces."""


class UploadSequence(threading.local):
    """Tells an upload of a checkpoint from one of artifacts, by the order of Ray's calls on one thread.

    Before it uploads a checkpoint, and only then, Ray looks for the marker of the experiment, then creates the
    directory, then copies; nothing comes in between. So the name of a checkpoint does not matter. (It also looks for a
    marker that it has just written, which begins nothing.)
    """

    written: str | None = None
    """The marker that this thread has just written."""
    experiment: str | None = None
    created: str | None = None
    kinds: tuple[str, bool] | None = None
    """The last path that this thread asked about, and whether it is a file."""

    def looked_for(self, path: str) -> None:
        """A single file or directory was asked for."""
        parent, _, name = path.rpartition("/")
        begins = name == MARKER and path != self.written
        self.reset()
        self.experiment = parent if begins else None

    def directory_created(self, path: str) -> None:
        """A directory was created."""
        below = self.experiment is not None and path.startswith(f"{self.experiment}/")
        self.created, self.experiment = (path if below else None), self.experiment if below else None

    def take(self, path: str) -> str | None:
        """The experiment, if a copy to ``path`` now is the upload of a checkpoint; else None."""
        experiment = self.experiment if self.created == path else None
        self.reset()
        return experiment

    def reset(self) -> None:
        """Something else happened."""
        self.experiment = self.created = self.written = None


class StorageHandler(pyarrow.fs.FileSystemHandler):  # type: ignore[misc]
    """Paths are those that Ray uses: the storage path without its scheme, and below."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.sequence = UploadSequence()
        self._markers: set[str] = set()
        """Markers that were seen."""
        self._created: set[str] = set()
        """Directories that this process created; a store holds no empty ones."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageHandler) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def call(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
        """Do ``work(storage, *arguments)``; blocks. See :func:`agent_handle.call`."""
        return agent_handle.call(self.address, work, *arguments, **options)

    def key(self, path: str) -> str:
        """The path relative to the storage. ConfigError for one outside of it."""
        scheme, separator, rest = path.partition(":/")
        bare = rest.lstrip("/") if separator and "/" not in scheme else path
        root = self.address.root.strip("/")
        bare = bare.strip("/")
        if bare == root or not root:
            return "" if root else bare
        if not bare.startswith(f"{root}/"):
            raise ConfigError(f"{path!r} is not below the storage path {self.address.uri}: open that storage instead")
        return bare[len(root) + 1 :]

    def begins_checkpoint(self, key: str) -> str | None:
        """The experiment, if a copy to ``key`` now is the upload of a checkpoint; else None."""
        experiment = self.sequence.take(key)
        if experiment is not None:
            self._created.discard(key)  # it exists when it is committed
        return experiment

    def path(self, key: str) -> str:
        """The path that Ray uses for ``key``."""
        return f"{self.address.root.rstrip('/')}/{key}".rstrip("/")

    # -- the interface of pyarrow

    def get_type_name(self) -> str:
        return "asyncsync"

    def normalize_path(self, path: str) -> str:
        return self.path(self.key(path))

    def get_file_info(self, paths: Iterable[str]) -> list[pyarrow.fs.FileInfo]:
        wanted = list(paths)
        if len(wanted) == 1:
            self.sequence.looked_for(self.key(wanted[0]))
        return [self._info(path) for path in wanted]

    def get_file_info_selector(self, selector: pyarrow.fs.FileSelector) -> list[pyarrow.fs.FileInfo]:
        self.sequence.reset()
        key = self.key(selector.base_dir)
        found = self.call(operations.entries, key, selector.recursive)
        if found is None and not selector.allow_not_found and key not in self._created:
            raise FileNotFoundError(f"there is no directory {selector.base_dir!r}")
        return [self._as_info(self.path(item.path), item) for item in found or ()]

    def create_dir(self, path: str, recursive: bool) -> None:
        key = self.key(path)
        self._created.add(key)
        self.sequence.directory_created(key)

    def delete_dir(self, path: str) -> None:
        self.sequence.reset()
        key = self.key(path)
        self._created.discard(key)
        registration.delete(self.address, key)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.delete_dir(path)
        self._created.add(self.key(path))

    def delete_root_dir_contents(self) -> None:
        raise ConfigError("the whole storage path is never deleted at once: delete its directories")

    def delete_file(self, path: str) -> None:
        self.sequence.reset()
        self.call(operations.delete_file, self.key(path))

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError("a store cannot move objects: copy the file, then delete it")

    def copy_file(self, src: str, dest: str) -> None:
        self.sequence.reset()
        self.call(operations.copy_file, self.key(src), self.key(dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.sequence.reset()
        return pa.PythonFile(io.BufferedReader(_StoredFile(self, path), READ_AHEAD), mode="r")

    def open_output_stream(self, path: str, metadata: object = None) -> pa.NativeFile:
        self.sequence.reset()
        self.sequence.written = self.key(path)
        return pa.PythonFile(_NewFile(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: object = None) -> pa.NativeFile:
        raise NotImplementedError("an object of a store cannot be appended to: write the complete file")

    # -- inside

    def _info(self, path: str) -> pyarrow.fs.FileInfo:
        key = self.key(path)
        if key.endswith(f"/{MARKER}"):
            return self._marker(path, key)
        found = self.call(operations.stat, key)
        if found is None and key in self._created:
            found = StoredEntry(key, None)
        self.sequence.kinds = None if found is None else (key, found.is_file)
        return self._as_info(path, found)

    def _marker(self, path: str, key: str) -> pyarrow.fs.FileInfo:
        """Looked for once a process, in one request: Ray asks before every upload."""
        if key not in self._markers and not self.call(operations.is_file, key):
            return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.NotFound)
        self._markers.add(key)
        return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File, size=0)

    @staticmethod
    def _as_info(path: str, entry: StoredEntry | None) -> pyarrow.fs.FileInfo:
        kind = pyarrow.fs.FileType
        if entry is None:
            return pyarrow.fs.FileInfo(path, kind.NotFound)
        if not entry.is_file:
            return pyarrow.fs.FileInfo(path, kind.Directory)
        return pyarrow.fs.FileInfo(path, kind.File, size=entry.size, mtime=entry.modified)


class _StoredFile(io.RawIOBase):
    """Reads ranges of an object."""

    def __init__(self, handler: StorageHandler, path: str) -> None:
        self._handler, self._key = handler, handler.key(path)
        found = handler.call(operations.stat, self._key)
        if found is None or found.size is None:
            raise FileNotFoundError(f"there is no file {path!r} in {handler.address.uri}")
        self._size, self._position = found.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        start = self._position
        data = self._handler.call(operations.read, self._key, start, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _NewFile(io.RawIOBase):
    """Collects the written bytes, and stores them when it is closed; unless an exception that was raised since it was
    opened closes it: then it would be torn."""

    def __init__(self, handler: StorageHandler, path: str) -> None:
        self._handler, self._key = handler, handler.key(path)
        self._data: io.BytesIO | tempfile._TemporaryFileWrapper[bytes] = io.BytesIO()
        self._raised_before = sys.exc_info()[1]

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if isinstance(self._data, io.BytesIO) and self._data.tell() + view.nbytes > SPOOLED:
            collected, self._data = self._data.getvalue(), tempfile.NamedTemporaryFile()  # noqa: SIM115
            self._data.write(collected)
        self._data.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self._data.tell()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        with self._data:
            if sys.exc_info()[1] is self._raised_before:
                self._publish()

    def _publish(self) -> None:
        if isinstance(self._data, io.BytesIO):
            registration.write(self._handler.address, self._key, self._data.getvalue())
            return
        self._data.flush()
        name = self._data.name
        self._handler.call(operations.write_file, name, self._key, local=name)
