"""The package as a whole: its exports, its dependencies, its type marker."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asyncsync

WITHOUT_EXTRAS = """
import sys

EXTRAS = ("aiobotocore", "aiohttp", "awscrt", "azure", "botocore", "fsspec", "gcloud", "plotly", "starlette", "uvicorn")

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(code: str, room: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_EXTRAS + code],
        cwd=room,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_public_name_is_there():
    assert [name for name in asyncsync.__all__ if not hasattr(asyncsync, name)] == []
    assert list(asyncsync.__all__) == sorted(asyncsync.__all__)


def test_the_import_leaves_out_modules_that_training_seldom_needs(tmp_path):
    late = ("asyncsync.remote.prune", "asyncsync.remote.pull", "asyncsync.stores.local.store", "pathspec")
    done = run(f"import asyncsync; print([name for name in {late} if name in sys.modules])", tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_misspelled_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prume'"):
        asyncsync.prume
    assert set(asyncsync.__all__) <= set(dir(asyncsync))


@pytest.mark.parametrize(
    "name",
    [
        "SyncConfig",
        "RunConfig",
        "CheckpointConfig",
        "TransferConfig",
        "UploadMode",
        "SyncEngine",
        "Trial",
        "Syncer",
        "Checkpoint",
        "Experiment",
        "push",
        "pull",
        "verify",
    ],
)
def test_the_documented_names_are_public(name):
    assert name in asyncsync.__all__


def test_the_version_is_that_of_the_distribution():
    assert asyncsync.__version__ == importlib.metadata.version("asyncsync")


def test_the_package_is_typed():
    assert Path(asyncsync.__file__).with_name("py.typed").exists()


def test_the_core_works_without_any_extra(tmp_path):
    code = """
import asyncio, pathlib
import asyncsync, asyncsync.cli, asyncsync.testing
pathlib.Path("data").mkdir()
pathlib.Path("data/a.txt").write_text("a")
assert asyncio.run(asyncsync.push("data", pathlib.Path("store").resolve())).files_sent == 1
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("fsspec+sftp", "fsspec")])
def test_a_store_without_its_extra_names_the_package_to_install(tmp_path, scheme, extra):
    code = f"""
from asyncsync import ConfigError
from asyncsync.stores import open_store
try:
    open_store("{scheme}://bucket/prefix")
except ConfigError as error:
    assert "pip install 'asyncsync[{extra}]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("ui", "/tmp/x"), ("report", "/tmp/x")])
def test_the_page_without_its_extra_names_the_package_to_install(tmp_path, arguments):
    done = run(f"import sys; sys.argv[1:] = {arguments}; import asyncsync.cli; asyncsync.cli.main()", tmp_path)
    assert (done.returncode, "pip install 'asyncsync[ui]'" in done.stderr) == (2, True), done.stderr


def test_importing_it_does_not_import_a_store_client(tmp_path):
    code = "import sys, asyncsync\nassert not {'aiobotocore', 'aiohttp', 'rich'} & set(sys.modules)"
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
