"""An experiment on the store in memory, in virtual time."""

from pathlib import Path
from typing import Any

from asyncsync import CheckpointConfig, RunConfig, SyncConfig, SyncEngine, TransferConfig
from asyncsync.testing import Faults, MemoryStore, inject_faults


class Bench:
    """One experiment ``exp`` in bucket ``b``, its faults, and the contents of the bucket."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.faults: Faults = inject_faults("b")
        self.store = MemoryStore("b", "exp")
        self.transfer = TransferConfig()
        self.storage_options: dict[str, object] = {}

    def engine(
        self, sync: SyncConfig | None = None, keep: CheckpointConfig | None = None, **options: Any
    ) -> SyncEngine:
        run = RunConfig(
            name="exp",
            storage_path="memory://b",
            sync_config=sync or SyncConfig(),
            checkpoint_config=keep or CheckpointConfig(),
            transfer=self.transfer,
            storage_options=self.storage_options,
        )
        return SyncEngine(run, **{"local_dir": self.tmp_path / "local", **options})

    def checkpoint(self, name: str = "ckpt", **files: bytes) -> Path:
        directory = self.tmp_path / name
        directory.mkdir(exist_ok=True)
        for file, data in (files or {"weights": b"w" * 1000}).items():
            (directory / file).write_bytes(data)
        return directory

    def keys(self, ending: str = "") -> list[str]:
        return sorted(key for key in self.store.contents if key.endswith(ending))

    def puts(self, key: str) -> int:
        return sum(request.operation == "put" and key in request.key for request in self.faults.requests)
