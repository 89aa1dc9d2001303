"""The package's structure: layers without circles, small modules, unique names, and the documented public API.

Everything is read from the sources; one engine on the store in memory shows its names. Each exception is named here.
A list of exceptions may become shorter, never longer.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import package_source
import public_api
import pytest
from package_source import PACKAGE, ROOT

from asyncsync import Experiment, RunConfig, SyncEngine, Syncer
from asyncsync.testing import reset_memory

TESTS = Path(__file__).parent

UPWARD_IMPORT = ("asyncsync.engine.engine", "asyncsync.blocking")
"""SyncEngine.blocking() opens the facade above it. It is the only import that points up."""

USERS = {"cli", "integrations", "testing", "ui"}
"""Packages that use the public face, like any other user."""
MAX_MODULES = 13
"""In one folder, ``__init__`` not counted."""
MAX_LINES = 500
SHORT = 17
"""A function of fewer lines is short; docstrings do not count."""
SHORT_SHARE = 0.90
MAX_TEST_NAME = 70
TEST = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)

REAL_SLEEP = re.compile(r"\b(?:asyncio|time)\.sleep\((?!0\))")
REAL_WAITS = {
    "engine/test_processes.py": "children that live until a signal",
    "disk/test_journal.py": "a file that the journal's thread writes",
    "integrations": "frameworks and their servers",
    "scenarios/test_azure_flows.py": "a process that is killed while it sends",
    "scenarios/test_gcs_flows.py": "a process that is killed while it sends",
    "stores/gcs/test_gcs_leaving.py": "a socket until the system's buffers are full",
    "stores/gcs/test_gcs_tls.py": "a server that drips",
    "stores/s3/test_s3_sdk.py": "a server that drips",
    "support": "processes and servers that are started, killed or away",
    "test_run.py": "a child that outlives its starter",
    "testing/test_proxy.py": "connections that are open or end",
}
"""Tests that wait for what has no event: other processes, servers, the system. All others use virtual time."""

STORES = {
    "asyncsync.stores.azure",
    "asyncsync.stores.fsspec",
    "asyncsync.stores.gcs",
    "asyncsync.stores.local",
    "asyncsync.stores.s3",
}
SAME_BASENAME = {
    "__main__": "python -m asyncsync and python -m asyncsync.testing.simulation",
    "errors": "the public errors; error responses of a service",
    "files": "files to read; objects that are files",
    "multipart": "the life of an upload to any store; uploads of the store of files; their conformance",
    "options": "options of the command; of every store; of one store",
    "status": "the public data; how the engine fills them",
}
"""Basenames of modules that are not one thing in several stores, and the meanings of each."""

PURE = {
    "__future__",
    "bisect",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "fnmatch",
    "functools",
    "google_crc32c",
    "heapq",
    "itertools",
    "json",
    "msgspec",
    "math",
    "os",
    "pathspec",
    "re",
    "stat",
    "typing",
}
"""Modules that planning may import. Of ``os`` it uses the type ``os.stat_result`` only."""

DOCUMENTED = {
    "SyncEngine": {"blocking", "events", "flush", "local_dir", "on_request", "status", "sync", "trial", "uri"},
    "Trial": {
        "dir",
        "finish",
        "latest",
        "name",
        "pin",
        "report",
        "restore",
        "retire",
        "set_params",
        "skip",
        "status",
        "sync",
        "unpin",
        "uri",
    },
    "Experiment": {
        "best_checkpoint",
        "checkpoint",
        "checkpoints",
        "config",
        "heartbeat",
        "latest_checkpoint",
        "lost",
        "name",
        "open",
        "restore",
        "started",
        "status",
        "to_frame",
        "trial",
        "trials",
        "uri",
    },
    "Syncer": {
        "delete",
        "local_dir",
        "manifest",
        "plan",
        "probe",
        "progress",
        "remove",
        "request",
        "sync_down",
        "sync_up",
        "sync_up_if_needed",
        "uri",
        "wait",
    },
}
CONTAINERS = {
    "asyncsync",
    "asyncsync.engine",
    "asyncsync.engine.trials",
    "asyncsync.stores",
    "asyncsync.stores.azure",
    "asyncsync.stores.fsspec",
    "asyncsync.stores.gcs",
    "asyncsync.stores.guard",
    "asyncsync.stores.http",
    "asyncsync.stores.s3",
    "asyncsync.sync",
}
"""Packages whose layers a contract in pyproject.toml draws."""


# Imports


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions and under TYPE_CHECKING count."""
    graph = package_source.import_graph()
    source, target = UPWARD_IMPORT
    graph[source].remove(target)
    assert package_source.circles(graph) == []


def test_the_search_for_circles_finds_them():
    graph = {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a", "e"], "e": []}
    assert package_source.circles(graph) == [{"a", "b", "c"}]


def test_only_users_of_the_package_import_its_public_face():
    inner = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in USERS]
    assert [str(path) for path in inner if "asyncsync" in {module for module, _ in package_source.imports(path)}] == []


def test_benchmarks_use_the_public_face():
    inner = ("asyncsync.engine", "asyncsync.remote", "asyncsync.sync")
    found = {
        f"{path.name}: {module}"
        for path in (ROOT / "benchmarks").glob("*.py")
        for module, _ in package_source.imports(path)
        if module.startswith(inner)
    }
    assert found == set()


def test_planning_is_pure():
    for path in (PACKAGE / "planning").rglob("*.py"):
        roots = {module.partition(".")[0] for module, _ in package_source.imports(path)}
        own = {module for module, _ in package_source.imports(path) if module.startswith("asyncsync")}
        assert roots <= PURE | {"asyncsync"}, path
        assert all(module.startswith(("asyncsync.planning", "asyncsync.errors")) for module in own), path
        used = {ast.unparse(node) for node in ast.walk(package_source.tree(path)) if isinstance(node, ast.Attribute)}
        assert {name for name in used if name.startswith("os.")} <= {"os.stat_result"}, path
        assert not any(isinstance(node, ast.AsyncFunctionDef) for node in package_source.functions(path)), path


def test_every_room_has_an_exhaustive_contract_without_circles():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [contract for contract in contracts if contract["type"] == "layers"]
    assert {container for contract in layers for container in contract["containers"]} >= CONTAINERS
    assert all(contract["exhaustive"] for contract in layers)
    assert not [layer for contract in layers for layer in contract["layers"] if ":" in layer]


# Sizes


@pytest.mark.parametrize("place", ["asyncsync", "tests", "benchmarks"])
def test_no_folder_has_too_many_modules(place):
    counts = defaultdict(int)
    for path in (ROOT / place).rglob("*.py"):
        counts[str(path.parent)] += path.name != "__init__.py"
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


def test_no_module_is_too_long():
    paths = [path for place in ("asyncsync", "tests", "benchmarks") for path in (ROOT / place).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_most_functions_are_short():
    lengths = [package_source.length(node) for path in PACKAGE.rglob("*.py") for node in package_source.functions(path)]
    short = sum(count < SHORT for count in lengths)
    assert short / len(lengths) >= SHORT_SHARE, f"{short} of {len(lengths)}"


def test_names_of_tests_are_short():
    names = {name for path in TESTS.rglob("*.py") for name in TEST.findall(path.read_text(encoding="utf-8"))}
    assert [name for name in sorted(names) if len(name) > MAX_TEST_NAME] == []


# Names


def test_basenames_of_modules_are_unique():
    """A name may recur where it is the same thing in several stores."""
    places = defaultdict(set)
    for name, path in package_source.modules().items():
        package, _, base = name.rpartition(".")
        if path.name != "__init__.py":
            places[base].add(package)
    shared = {base for base, packages in places.items() if len(packages) > 1 and not _in_stores(packages)}
    assert shared == SAME_BASENAME.keys()


def _in_stores(packages: set[str]) -> bool:
    return all(package.startswith(tuple(STORES)) for package in packages)


def test_class_names_are_unique():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in package_source.classes(path):
            places[node.name].append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_package_has_a_docstring():
    rooms = {path.parent.name: package_source.tree(path) for path in PACKAGE.rglob("__init__.py")}
    assert {name for name, module in rooms.items() if not ast.get_docstring(module)} == set()
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


# The public API


async def test_live_objects_show_the_documented_names_only(tmp_path):
    reset_memory()
    run = RunConfig(name="exp", storage_path="memory://b")
    async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
        trial = engine.trial("t")
        await trial.report({"loss": 1.0})
    experiment = await Experiment.open("memory://b/exp")
    async with Syncer(tmp_path / "local", "memory://b/tree") as syncer:
        for live in (engine, trial, experiment, syncer):
            kind = type(live).__name__
            names = {name for name in dir(live) if not name.startswith("_")}
            assert names == DOCUMENTED[kind], kind


def test_the_public_api_is_the_one_in_the_snapshot():
    """``python tests/public_api.py`` writes the snapshot again after an intended change."""
    assert public_api.render().splitlines() == public_api.SNAPSHOT.read_text(encoding="utf-8").splitlines()


def test_nothing_sleeps_for_real_where_an_event_would_do():
    found = set()
    for path in TESTS.rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(TESTS))
        if REAL_SLEEP.search(text) and not re.search(r"virtual_time|run_virtual|VirtualTimeLoop", text):
            found.add(next((known for known in REAL_WAITS if name.startswith(known)), name))
    assert found == set(REAL_WAITS)
