"""Memory and a directory."""

from asyncsync.stores import open_store
from asyncsync.testing import MemoryStore


def memory(request):
    return MemoryStore("conformance", "prefix")


def local(request):
    return open_store(request.getfixturevalue("tmp_path") / "objects")


KINDS = {"memory": memory, "local": local}

DIFFERENCES = {
    ("local", "refuses a wrong checksum of a file"): "the kernel copies the bytes unseen",
    ("local", "an object and a directory of one name"): "a file cannot be a directory",
}
