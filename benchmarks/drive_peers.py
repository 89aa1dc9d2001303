"""The peers that are libraries: `python drive_peers.py VERB PEER DIRECTORY PREFIX`, with the peers' own interpreter.

Each does what its own documentation tells a user to do, with the same limits: 256 small requests at once, 8 parts of
16 MiB of a large file. $BENCH_TRIALS: only so many directories; $BENCH_AT_ONCE: so many requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from inside import Report

BUCKET = "bench"
REGION = "us-east-1"
AT_ONCE = int(os.environ["BENCH_AT_ONCE"])
PARTS_AT_ONCE = 8
PART = 16 << 20
PATIENCE = 300
ENDPOINT = os.environ["BENCH_ENDPOINT"]
CA = os.environ.get("BENCH_CA")


def _files(source: Path, prefix: str) -> list[tuple[str, str]]:
    """(key, path) of every file below `source`."""
    paths = (os.path.join(at, name) for at, _, names in os.walk(source) for name in names)
    return [(f"{prefix}/{os.path.relpath(path, source)}", path) for path in paths]


def _data(items: Iterable[tuple[str, int]], prefix: str, target: Path) -> list[tuple[str, int, str]]:
    """(key, size, path) of what is to be fetched; the directories are made."""
    found = [
        (key, size, str(target / key.removeprefix(f"{prefix}/"))) for key, size in items if ".asyncsync/" not in key
    ]
    for directory in {os.path.dirname(path) for _, _, path in found}:
        os.makedirs(directory, exist_ok=True)
    return found


async def _each(worker: Callable[..., Awaitable[None]], items: list, at_once: int) -> None:
    """`worker(item)` for every item, `at_once` of them at a time."""
    queue = iter(items)

    async def drain() -> None:
        for item in queue:
            await worker(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(items))):
            group.create_task(drain())


def _read(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _write(path: str, offset: int, data: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


def _ranges(size: int) -> list[tuple[int, int]]:
    """(offset, length) of the parts."""
    return [(offset, min(PART, size - offset)) for offset in range(0, size, PART)]


class Obstore:
    def __init__(self) -> None:
        import obstore
        from obstore.store import S3Store

        self.api = obstore
        options = {"root_certificate": Path(CA).read_bytes()} if CA else {"allow_http": True}
        self.store = S3Store(
            BUCKET, endpoint=ENDPOINT, region=REGION, virtual_hosted_style_request=False, client_options=options
        )

    async def up(self, source: Path, prefix: str) -> None:
        async def put(item: tuple[str, str]) -> None:
            key, path = item
            await self.api.put_async(self.store, key, Path(path), chunk_size=PART, max_concurrency=PARTS_AT_ONCE)

        await _each(put, _files(source, prefix), AT_ONCE)

    async def down(self, target: Path, prefix: str) -> None:
        listed = [item async for page in self.api.list(self.store, prefix=prefix) for item in page]

        async def get(item: tuple[str, int, str]) -> None:
            key, size, path = item
            if size > PART:
                await _each(lambda span: part(key, path, *span), _ranges(size), PARTS_AT_ONCE)
            else:
                answer = await self.api.get_async(self.store, key)
                Path(path).write_bytes(memoryview(await answer.bytes_async()))

        async def part(key: str, path: str, offset: int, length: int) -> None:
            data = await self.api.get_range_async(self.store, key, start=offset, length=length)
            await asyncio.to_thread(_write, path, offset, memoryview(data))

        await _each(get, _data(((item["path"], item["size"]) for item in listed), prefix, target), AT_ONCE)


class Aiobotocore:
    def __init__(self) -> None:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session

        config = AioConfig(max_pool_connections=AT_ONCE)
        self.open = lambda: get_session().create_client("s3", endpoint_url=ENDPOINT, region_name=REGION, config=config)

    async def up(self, source: Path, prefix: str) -> None:
        async with self.open() as client:

            async def put(item: tuple[str, str]) -> None:
                key, path = item
                if os.path.getsize(path) > PART:
                    await self.in_parts(client, key, path)
                else:
                    await client.put_object(Bucket=BUCKET, Key=key, Body=Path(path).read_bytes())

            await _each(put, _files(source, prefix), AT_ONCE)

    async def in_parts(self, client, key: str, path: str) -> None:
        upload = (await client.create_multipart_upload(Bucket=BUCKET, Key=key))["UploadId"]
        where, sent = {"Bucket": BUCKET, "Key": key, "UploadId": upload}, {}

        async def part(span: tuple[int, int]) -> None:
            number = span[0] // PART + 1
            body = await asyncio.to_thread(_read, path, *span)
            sent[number] = (await client.upload_part(**where, PartNumber=number, Body=body))["ETag"]

        await _each(part, _ranges(os.path.getsize(path)), PARTS_AT_ONCE)
        parts = [{"PartNumber": number, "ETag": sent[number]} for number in sorted(sent)]
        await client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})

    async def down(self, target: Path, prefix: str) -> None:
        async with self.open() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
            listed = [(item["Key"], item["Size"]) async for page in pages for item in page.get("Contents", ())]

            async def part(key: str, path: str, offset: int, length: int) -> None:
                answer = await client.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
                await asyncio.to_thread(_write, path, offset, await answer["Body"].read())

            async def get(item: tuple[str, int, str]) -> None:
                key, size, path = item
                await _each(lambda span: part(key, path, *span), _ranges(size), PARTS_AT_ONCE)

            await _each(get, _data(listed, prefix, target), AT_ONCE)


class Boto3:
    def __init__(self) -> None:
        import boto3
        from s3transfer.manager import TransferManager

        self.boto3, self.manager = boto3, TransferManager

    async def up(self, source: Path, prefix: str) -> None:
        client = self.boto3.client("s3", endpoint_url=ENDPOINT, region_name=REGION)
        with self.manager(client) as manager:
            for future in [manager.upload(path, BUCKET, key) for key, path in _files(source, prefix)]:
                future.result()

    async def down(self, target: Path, prefix: str) -> None:
        client = self.boto3.client("s3", endpoint_url=ENDPOINT, region_name=REGION)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        listed = ((item["Key"], item["Size"]) for page in pages for item in page.get("Contents", ()))
        with self.manager(client) as manager:
            for future in [manager.download(BUCKET, key, path) for key, _, path in _data(listed, prefix, target)]:
                future.result()


class S3fs:
    def __init__(self) -> None:
        import s3fs

        self.fs = s3fs.S3FileSystem(
            endpoint_url=ENDPOINT,
            client_kwargs={"region_name": REGION},
            config_kwargs={"max_pool_connections": AT_ONCE},
        )

    async def up(self, source: Path, prefix: str) -> None:
        put = lambda: self.fs.put(f"{source}/", f"{BUCKET}/{prefix}/", recursive=True, batch_size=AT_ONCE)  # noqa: E731
        await asyncio.to_thread(put)

    async def down(self, target: Path, prefix: str) -> None:
        get = lambda: self.fs.get(f"{BUCKET}/{prefix}/", f"{target}/", recursive=True, batch_size=AT_ONCE)  # noqa: E731
        await asyncio.to_thread(get)


class Pyarrow:
    """With its threads."""

    chunk = PART
    threads = True

    def __init__(self) -> None:
        import pyarrow.fs

        self.api = pyarrow.fs
        scheme, _, address = ENDPOINT.partition("://")
        self.s3 = self.api.S3FileSystem(endpoint_override=address, scheme=scheme, region=REGION, tls_ca_file_path=CA)

    async def up(self, source: Path, prefix: str) -> None:
        self.copy(str(source), f"{BUCKET}/{prefix}", self.api.LocalFileSystem(), self.s3)

    async def down(self, target: Path, prefix: str) -> None:
        self.copy(f"{BUCKET}/{prefix}", str(target), self.s3, self.api.LocalFileSystem())

    def copy(self, source: str, target: str, come_from: object, go_to: object) -> None:
        self.api.copy_files(
            source,
            target,
            source_filesystem=come_from,
            destination_filesystem=go_to,
            chunk_size=self.chunk,
            use_threads=self.threads,
        )


class PyarrowAsRay(Pyarrow):
    """Trial after trial, without threads, as Ray's `StorageContext` calls it."""

    chunk = 64 << 20
    threads = False

    async def up(self, source: Path, prefix: str) -> None:
        for trial in sorted(os.listdir(source))[: int(os.environ.get("BENCH_TRIALS", "1000000"))]:
            self.copy(f"{source}/{trial}", f"{BUCKET}/{prefix}/{trial}", self.api.LocalFileSystem(), self.s3)


class GcloudAio:
    def __init__(self) -> None:
        import aiohttp
        from gcloud.aio.storage import Storage

        self.aiohttp, self.storage = aiohttp, Storage

    @contextlib.asynccontextmanager
    async def open(self):
        connector = self.aiohttp.TCPConnector(limit=AT_ONCE)
        async with self.aiohttp.ClientSession(connector=connector) as session:
            yield self.storage(session=session)

    async def up(self, source: Path, prefix: str) -> None:
        async with self.open() as storage:

            async def put(item: tuple[str, str]) -> None:
                key, path = item
                if os.path.getsize(path) > PART:
                    with open(path, "rb") as file:  # noqa: ASYNC230  # it reads it in blocks of its own
                        await storage.upload(BUCKET, key, file, timeout=PATIENCE)
                else:
                    await storage.upload(BUCKET, key, Path(path).read_bytes())

            await _each(put, _files(source, prefix), AT_ONCE)

    async def down(self, target: Path, prefix: str) -> None:
        async with self.open() as storage:
            listed = await storage.list_objects(BUCKET, params={"prefix": f"{prefix}/"})
            items = list(listed["items"])
            while token := listed.get("nextPageToken"):
                listed = await storage.list_objects(BUCKET, params={"prefix": f"{prefix}/", "pageToken": token})
                items += listed["items"]

            async def get(item: tuple[str, int, str]) -> None:
                key, _, path = item
                Path(path).write_bytes(await storage.download(BUCKET, key, timeout=PATIENCE))

            await _each(get, _data(((item["name"], int(item["size"])) for item in items), prefix, target), AT_ONCE)


class Gcsfs(S3fs):
    def __init__(self) -> None:
        # Otherwise it asks Google by gRPC what kind of bucket this is, which no emulator answers.
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        import gcsfs

        self.fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=ENDPOINT)


PEERS = {
    "obstore": Obstore,
    "gcloud-aio-storage": GcloudAio,
    "gcsfs": Gcsfs,
    "aiobotocore": Aiobotocore,
    "boto3": Boto3,
    "s3fs": S3fs,
    "pyarrow-threads": Pyarrow,
    "pyarrow-as-ray": PyarrowAsRay,
}


async def main(verb: str, name: str, where: Path, prefix: str) -> None:
    report, peer = Report(), PEERS[name]()
    if verb == "lag":
        async with report.lag():
            with report.work():
                await peer.up(where, prefix)
    else:
        with report.work():
            await getattr(peer, verb)(where, prefix)
    report.write()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
    os._exit(0)  # without the interpreter's teardown, in which a library's own threads may abort the process
