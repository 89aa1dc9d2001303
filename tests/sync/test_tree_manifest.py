"""A manifest is unknown, from the journal, absent or present; each state changes only as described."""

import pytest

from asyncsync.config import TransferConfig
from asyncsync.errors import ConcurrentWriterError, UnavailableError
from asyncsync.planning.manifest import MANIFEST, FileEntry, Manifest
from asyncsync.stores.base import MISSING, Lane
from asyncsync.sync.session import Session
from asyncsync.sync.tree_manifest import Absent, FromJournal, Present, TreeManifest, Unknown
from asyncsync.testing import MemoryStore, reset_memory

URI = "memory://b/p"


def entry(path: str) -> FileEntry:
    return FileEntry(path, 1, 1, 0o644, 1, 0, ("0" * 32,), (1,), "v")


@pytest.fixture
async def session(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "state"))
    reset_memory()
    session = await Session.open(URI, TransferConfig())
    yield session
    await session.close()


def known(session, **options):
    return TreeManifest(session.journal, "tree", "", **options)


def view(session):
    return session.view(Lane.ARTIFACT, "")


async def written(session, *paths):
    """A manifest that another process has written; its version."""
    data = Manifest({path: entry(path) for path in paths}).to_bytes()
    return (await MemoryStore("b", "p").put(MANIFEST, data)).version


async def test_an_unknown_manifest_is_read_from_the_store(session):
    manifest = known(session)
    assert manifest.state == Unknown()
    await manifest.load(view(session))
    assert (manifest.state, manifest.stored) == (Absent(), None)
    version = await written(session, "a")
    await manifest.fetch(view(session))
    assert (manifest.state, [*manifest.stored.files]) == (Present(version), ["a"])


async def test_a_committed_manifest_is_present_and_later_from_the_journal(session):
    manifest = known(session)
    await manifest.load(view(session))
    manifest.add_sent({"a": entry("a")}, 7)
    _, named = await manifest.commit(view(session), [], 7, ())
    assert ([*named], manifest.unnamed, manifest.scanned) == (["a"], None, 7)
    later = known(session)
    await later.load(view(session))
    assert later.state == FromJournal(manifest.state.version)
    assert await later.confirm(view(session))
    assert later.state == manifest.state


async def test_an_outdated_manifest_of_the_journal_is_read_again(session):
    session.journal.save_tree("tree", Manifest({"old": entry("old")}).to_bytes(), "old version")
    version = await written(session, "new")
    manifest = known(session)
    await manifest.load(view(session))
    assert not await manifest.confirm(view(session))
    assert (manifest.state, [*manifest.stored.files]) == (Present(version), ["new"])


async def test_after_an_assumed_absence_an_existing_manifest_is_merged(session):
    await written(session, "theirs")
    manifest, store = known(session), view(session)
    manifest.expect_nothing(store)
    await manifest.load(store)
    assert (manifest.state, store.requests) == (Absent(assumed=True), 0)
    manifest.add_sent({"ours": entry("ours")}, 1)
    await manifest.commit(store, [], 1, ())
    assert sorted(manifest.stored.files) == ["ours", "theirs"]


async def test_another_writer_is_an_error_unless_the_absence_was_assumed(session):
    manifest = known(session)
    await manifest.load(view(session))
    await written(session, "theirs")
    manifest.add_sent({"ours": entry("ours")}, 1)
    with pytest.raises(ConcurrentWriterError, match="another process has written its manifest"):
        await manifest.commit(view(session), [], 1, ())
    assert manifest.state == Unknown()


async def test_a_write_without_a_response_leaves_the_manifest_unknown(session, monkeypatch):
    manifest, store = known(session), view(session)
    await manifest.load(store)
    manifest.add_sent({"a": entry("a")}, 1)

    async def lost(*_args, **_options):
        raise UnavailableError("no response")

    monkeypatch.setattr(store, "put", lost)
    with pytest.raises(UnavailableError):
        await manifest.commit(store, [], 1, ())
    assert (manifest.state, [*manifest.known.files]) == (Unknown(), ["a"])


async def test_a_manifest_that_is_written_once_is_not_kept_in_the_journal(session):
    manifest = known(session, once=True)
    assert manifest.state == Absent()
    manifest.add_sent({"a": entry("a")}, 1)
    await manifest.commit(view(session), [], 1, ())
    assert (await session.journal.load_tree("tree")).manifest is None


async def test_a_manifest_that_differs_only_in_times_is_not_written(session):
    manifest = known(session)
    await manifest.load(view(session))
    manifest.add_sent({"a": entry("a")}, 1)
    await manifest.commit(view(session), [], 1, ())
    before, store = manifest.state, view(session)
    manifest.add_sent({"a": entry("a")}, 2)
    await manifest.commit(store, [], 2, ())
    assert (manifest.state, store.requests, manifest.scanned) == (before, 0, 2)
    assert before != Present(MISSING)


async def test_a_recheck_replaces_the_manifest_of_a_replaced_writer(session):
    """Its lease may have lasted until after ours was written; what it names is not what lies there."""
    store = MemoryStore("b", "p")
    info = await store.put("a", b"a")
    manifest = known(session)
    await manifest.load(view(session))
    ours = FileEntry("a", 1, 1, 0o644, 1, 0, ("0" * 32,), (1,), info.version)
    manifest.add_sent({"a": ours}, 7)
    await manifest.commit(view(session), [], 7, ())
    foreign = await written(session, "a", "b")
    await manifest.recheck(view(session))
    assert (manifest.state, manifest.is_outdated) == (Present(foreign), True)
    await manifest.commit(view(session), [], 8, ())
    found = Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST])
    assert found.files == {"a": ours}
