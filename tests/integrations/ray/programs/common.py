"""What all programs share: their settings, the storage, Ray."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import ray

SETTINGS = json.loads(os.environ["SETTINGS"])


def storage():
    from asyncsync.integrations import ray as asyncsync_ray

    return asyncsync_ray.storage(os.environ["STORAGE_URI"], storage_options=json.loads(os.environ["STORAGE_OPTIONS"]))


@contextmanager
def running(num_cpus=3):
    ray.init(
        address="local", num_cpus=num_cpus, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=True
    )
    try:
        yield
    finally:
        ray.shutdown()


def result(**document):
    print("RESULT " + json.dumps(document, default=str), flush=True)


def read(directory):
    """The files of a directory: path -> size, and the content of small ones."""
    root = Path(directory)
    files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    return {path: data.decode() if len(data) < 100 else len(data) for path, data in files.items()}
