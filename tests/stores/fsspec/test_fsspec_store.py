"""File systems of fsspec: addresses, refusals, what is read back, and what is said about them."""

import asyncio
import logging
import os

import pytest

from asyncsync import RunConfig, SyncEngine, TransferConfig, prune, pull, push, remove, verify
from asyncsync.disk.files import FileRange
from asyncsync.errors import AccessDeniedError, ConfigError, IntegrityError, NotFoundError, StoreError, UnavailableError
from asyncsync.remote.repair import repair
from asyncsync.stores import open_store
from asyncsync.stores.base import Upload
from asyncsync.stores.fsspec.connections import FileSystemAddress

fsspec = pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

MIB = 1 << 20
URI = "fsspec+memory://box/run"


@pytest.fixture(autouse=True)
def empty():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
async def store():
    async with open_store(URI) as opened:
        yield opened


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree/dir[1]").mkdir(parents=True)
    (tmp_path / "tree/big").write_bytes(os.urandom(9 * MIB))
    (tmp_path / "tree/dir[1]/a*b?").write_bytes(b"12345")
    return tmp_path / "tree"


# Addresses


@pytest.mark.parametrize(
    ("protocol", "native"),
    [
        ("s3", "s3://"),
        ("s3a", "s3://"),
        ("gs", "gs://"),
        ("gcs", "gs://"),
        ("az", "az://"),
        ("abfs", "az://"),
        ("abfss", "az://"),
        ("file", "absolute path"),
    ],
)
def test_a_protocol_with_a_store_of_its_own_is_refused(protocol, native):
    with pytest.raises(ConfigError, match=native):
        open_store(f"fsspec+{protocol}://box/run")


@pytest.mark.parametrize(
    "uri", ["fsspec+://box/run", "fsspec+nonsense://box/run", "fsspec+sftp:///run", "fsspec+a b://x"]
)
def test_an_unknown_protocol_is_refused(uri):
    with pytest.raises(ConfigError):
        open_store(uri)


@pytest.mark.parametrize("uri", ["fsspec+sftp://me:TOPSECRET@host/run", "fsspec+ftp://:TOPSECRET@host:21/run"])
def test_a_password_in_the_address_is_refused_and_not_shown(uri):
    with pytest.raises(ConfigError, match="password") as caught:
        open_store(uri)
    assert "TOPSECRET" not in str(caught.value)


def test_a_password_among_the_options_is_not_shown():
    address = FileSystemAddress.of("fsspec+memory://box", {"password": "TOPSECRET"})
    assert "TOPSECRET" not in repr(address)
    for error in (ValueError("login me:TOPSECRET failed"), OSError("ftp://me:other@host/x")):
        shown = str(address.failure("read", "key", error))
        assert "TOPSECRET" not in shown
        assert "other" not in shown


def test_known_schemes_are_shown_as_they_are_written():
    with pytest.raises(ConfigError, match=r"fsspec\+PROTOCOL://"):
        open_store("unknown://x")


# Files


async def test_names_with_magic_characters_stay_names(store):
    for key in ("a[1]/b*", "a1/b*", "a[1]/b?"):
        await store.put(key, key.encode())
    await store.delete(["a[1]/b?"])
    assert [info.key for info in (await store.list()).objects] == ["a1/b*", "a[1]/b*"]
    assert (await store.get("a[1]/b*"))[0] == b"a[1]/b*"


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/.", "a\0b", "a/.asyncsync-tmp-1"])
async def test_a_key_outside_the_directory_is_refused(store, key):
    with pytest.raises(StoreError):
        await store.put(key, b"")
    assert MemoryFileSystem.store == {}


async def test_what_does_not_come_back_is_not_published(store, monkeypatch):
    await store.put("a", b"old")
    real = MemoryFileSystem._open

    def damaged(self, path, mode="rb", **more):
        if mode == "rb" and ".asyncsync-tmp-" in path:
            self.store[path] = type(self.store[path])(self, path, b"12845")
        return real(self, path, mode, **more)

    monkeypatch.setattr(MemoryFileSystem, "_open", damaged)
    with pytest.raises(IntegrityError, match="came back") as caught:
        await store.put("a", b"12345")
    assert caught.value.retryable
    assert (await store.get("a"))[0] == b"old"
    assert list(MemoryFileSystem.store) == ["/box/run/a"]


async def test_a_failed_write_leaves_nothing_behind(store, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "cp_file", full)
    with pytest.raises(UnavailableError):
        await store.put("a", b"12345")
    assert MemoryFileSystem.store == {}


class FreeNamesOnly(MemoryFileSystem):
    """A server that renames to free names only, like SFTP without its extension. ``breaks``: whether a rename breaks,
    for each of the next ones: None, "before" it is done, or "after"."""

    protocol = "freenames"
    breaks: tuple[str | None, ...] = ()

    def mv(self, path1, path2, **more):
        breaks, FreeNamesOnly.breaks = FreeNamesOnly.breaks[:1], FreeNamesOnly.breaks[1:]
        if breaks == ("before",):
            raise ConnectionResetError("broke")
        if self.exists(path2) and breaks != ("after",):
            raise OSError("Failure")
        self.cp_file(path1, path2)
        self.rm_file(path1)
        if breaks == ("after",):
            raise ConnectionResetError("the response was lost")


@pytest.mark.parametrize(
    ("breaks", "kept"),
    [
        ((), b"new"),
        (("after",), b"new"),
        (("before",), b"new"),
        ((None, None, "before"), b"old"),
        ((None, "before"), b"old"),
    ],
)
async def test_a_rename_that_breaks_costs_neither_the_old_file_nor_the_new_one(monkeypatch, breaks, kept):
    fsspec.register_implementation("freenames", FreeNamesOnly, clobber=True)
    async with open_store("fsspec+freenames://box/run") as store:
        await store.put("a", b"old")
        monkeypatch.setattr(FreeNamesOnly, "breaks", breaks)
        try:
            await store.put("a", b"new")
        except UnavailableError:
            assert kept == b"old"
        assert (await store.get("a"))[0] == kept
        assert [name.rpartition("/")[2] for name in MemoryFileSystem.store] == ["a"]


async def test_what_a_killed_writer_left_is_removed_by_prune_and_by_rm(store, tree):
    await push(tree, URI)
    left = [f"/box/run/{place}.asyncsync-tmp-0123" for place in ("", "dir[1]/", "gone/deep/")]

    async def leave():
        for path in left:
            MemoryFileSystem().pipe(path, b"half")

    await leave()
    assert not [info.key for info in (await store.list()).objects if "tmp" in info.key]
    assert (await prune(URI, dry_run=False)).uploads == []  # they are young
    report = await prune(URI, dry_run=False, older_than=0)
    assert report.uploads == sorted(path.removeprefix("/box/run/") for path in left)
    assert not [path for path in MemoryFileSystem.store if "tmp" in path]
    assert (await verify(URI, deep=True)).ok
    await leave()
    await remove(URI, dry_run=False)
    assert MemoryFileSystem.store == {}


async def test_only_a_temporary_file_is_aborted(store):
    await store.put("a", b"12345")
    for key in ("a", "b", ".asyncsync-tmp-none", "sub/.asyncsync-tmp-none"):
        await store.abort_multipart(Upload(key, "x"))
    assert (await store.get("a"))[0] == b"12345"
    with pytest.raises(StoreError):
        await store.abort_multipart(Upload("../.asyncsync-tmp-0123", "x"))


async def test_a_cancelled_write_leaves_nothing_behind(store, tmp_path):
    (tmp_path / "f").write_bytes(bytes(8 * MIB))
    task = asyncio.create_task(store.put("a", FileRange(str(tmp_path / "f"), 0, 8 * MIB)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [name for name in MemoryFileSystem.store if "tmp" in name]


async def test_a_connection_that_broke_is_not_used_again(store, monkeypatch):
    await store.put("a", b"12345")
    made = []
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path: made.append(self) or broken())

    def broken():
        raise ConnectionResetError("gone")

    for _ in range(2):
        with pytest.raises(UnavailableError):
            await store.head("a")
    assert made[0] is not made[1]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), NotFoundError),
        (PermissionError("x"), AccessDeniedError),
        (TimeoutError("x"), UnavailableError),
        (EOFError("x"), UnavailableError),
        (type("SSHException", (Exception,), {})("x"), UnavailableError),
        (type("AuthenticationException", (Exception,), {})("x"), AccessDeniedError),
        (NotImplementedError("x"), StoreError),
        (ValueError("x"), StoreError),
    ],
)
async def test_every_error_of_a_file_system_is_mapped(store, monkeypatch, error, kind):
    def fail(self, path):
        raise error

    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    with pytest.raises(StoreError) as caught:
        await store.head("a")
    assert type(caught.value) is kind


async def test_directories_without_files_are_no_prefixes(store):
    await store.put("full/deep/a", b"")
    await store.put("empty/deep/a", b"")
    await store.delete(["empty/deep/a"])
    assert (await store.list(delimiter="/")).prefixes == ("full/",)


# The engine above it


async def test_large_files_travel_whole(tree, tmp_path):
    parts = TransferConfig(multipart_threshold=1 * MIB, part_size=5 * MIB)
    report = await push(tree, URI, transfer=parts)
    assert report.files_sent == 2
    with (tree / "big").open("ab") as file:
        file.write(b"more")
    assert (await push(tree, URI, transfer=parts)).bytes_sent == 9 * MIB + 4
    await pull(URI, tmp_path / "copy")
    assert (tmp_path / "copy/big").read_bytes() == (tree / "big").read_bytes()
    MemoryFileSystem.store["/box/run/big"] = MemoryFileSystem.store["/box/run/dir[1]/a*b?"]
    assert set((await verify(URI, deep=True)).damaged) == {"big"}
    await repair(URI, tree)
    assert (await verify(URI, deep=True)).damaged == {}


async def test_what_is_not_kept_is_said_at_the_start_and_in_the_status(tree, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    run = RunConfig(name="sweep", storage_path="fsspec+memory://box")
    async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
        await engine.trial("one").report({"loss": 1.0}, checkpoint=tree)
        status = engine.status()
    assert status.conditional_writes is False
    assert any("no conditional writes" in line for line in status.not_kept)
    assert "does not keep all promises: it has no conditional writes" in caplog.text


async def test_over_sftp_a_tree_goes_up_and_comes_back(sftp, tree, tmp_path):
    uri = f"{sftp.uri}/tree"
    (tree / "big").write_bytes(os.urandom(MIB))  # each 32 KiB take a round trip
    await push(tree, uri, storage_options=sftp.storage_options)
    await pull(uri, tmp_path / "copy", storage_options=sftp.storage_options)
    assert (tmp_path / "copy/big").read_bytes() == (tree / "big").read_bytes()
    with pytest.raises(AccessDeniedError) as caught:
        await push(tree, uri, storage_options=sftp.storage_options | {"password": "WRONGSECRET"})
    assert "WRONGSECRET" not in f"{caught.value} {caught.value.__cause__}"
