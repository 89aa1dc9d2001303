"""Uploads to Azure Blob Storage: asyncsync beside azure-storage-blob, adlfs and obstore, on the sink or on Azurite.

    python benchmarks/azure_peers.py SERVER CASE TOOL DIRECTORY    one run; prints one JSON line
    python benchmarks/azure_peers.py SERVER [RUNS [CASE,CASE]]       all tools in turn; the best run of each counts

SERVER is the address of an account named devstoreaccount1, with a container ``bench``: ``http://127.0.0.1:10000``.
Cases: ``small`` (5,000 files of 16 KiB), ``large`` (one file of 1 GiB), ``puts`` (5,000 puts of 16 KiB from memory).
The tools use their own defaults, and 64 requests at a time for small files where they leave that to the caller.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "bench"
SMALL, SMALL_SIZE = 5000, 16 << 10
LARGE_SIZE = 1 << 30
AT_ONCE = 64
TOOLS = ("asyncsync", "azure-storage-blob", "adlfs", "obstore")


def make(case: str, root: Path) -> None:
    root.mkdir(parents=True)
    if case == "large":
        with (root / "big").open("wb") as file:
            for _ in range(LARGE_SIZE >> 20):
                file.write(os.urandom(1 << 20))
    else:
        for number in range(SMALL):
            (root / f"{number:04}").write_bytes(os.urandom(SMALL_SIZE))


async def limited(jobs) -> None:
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            await job()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def with_asyncsync(case: str, root: Path, server: str, prefix: str) -> None:
    from asyncsync import TransferConfig, push
    from asyncsync.stores import open_store

    options = {"account": ACCOUNT, "account_key": KEY, "endpoint_url": f"{server}/{ACCOUNT}"}
    if case != "puts":
        await push(root, f"az://{CONTAINER}/{prefix}", storage_options=options, transfer=TransferConfig())
        return
    data = os.urandom(SMALL_SIZE)
    async with open_store(f"az://{CONTAINER}/{prefix}", options=options) as store:
        await limited(lambda n=n: store.put(f"{n}", data) for n in range(SMALL))


async def with_sdk(case: str, root: Path, server: str, prefix: str) -> None:
    from azure.storage.blob.aio import ContainerClient

    credential = {"account_name": ACCOUNT, "account_key": KEY}
    async with ContainerClient(f"{server}/{ACCOUNT}", CONTAINER, credential=credential) as client:

        async def send(path: Path) -> None:
            with path.open("rb") as file:
                await client.upload_blob(f"{prefix}/{path.name}", file, overwrite=True, max_concurrency=8)

        data = os.urandom(SMALL_SIZE)
        if case == "puts":
            await limited(lambda n=n: client.upload_blob(f"{prefix}/{n}", data, overwrite=True) for n in range(SMALL))
        else:
            await limited(lambda path=path: send(path) for path in sorted(root.iterdir()))


async def with_adlfs(case: str, root: Path, server: str, prefix: str) -> None:
    from adlfs import AzureBlobFileSystem

    text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={server}/{ACCOUNT};"
    # its coroutines are named as private, and are what its users in asyncio call
    system = AzureBlobFileSystem(connection_string=text, asynchronous=True)
    data = os.urandom(SMALL_SIZE)
    if case == "puts":
        await limited(lambda n=n: system._pipe_file(f"{CONTAINER}/{prefix}/{n}", data) for n in range(SMALL))  # noqa: SLF001
    else:
        await limited(
            lambda path=path: system._put_file(str(path), f"{CONTAINER}/{prefix}/{path.name}")  # noqa: SLF001
            for path in sorted(root.iterdir())
        )


async def with_obstore(case: str, root: Path, server: str, prefix: str) -> None:
    import obstore
    from obstore.store import AzureStore

    store = AzureStore(
        CONTAINER,
        account_name=ACCOUNT,
        account_key=KEY,
        endpoint=f"{server}/{ACCOUNT}",
        client_options={"allow_http": True},
    )
    data = os.urandom(SMALL_SIZE)
    if case == "puts":
        await limited(lambda n=n: obstore.put_async(store, f"{prefix}/{n}", data) for n in range(SMALL))
    else:
        await limited(
            lambda path=path: obstore.put_async(store, f"{prefix}/{path.name}", path) for path in sorted(root.iterdir())
        )


DRIVERS = {
    "asyncsync": (with_asyncsync, ("asyncsync.stores.azure.store", "awscrt.checksums")),
    "azure-storage-blob": (with_sdk, ("azure.storage.blob.aio",)),
    "adlfs": (with_adlfs, ("adlfs",)),
    "obstore": (with_obstore, ("obstore",)),
}


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_one(server: str, case: str, tool: str, root: Path) -> None:
    driver, modules = DRIVERS[tool]
    for module in modules:  # start-up, not work
        importlib.import_module(module)
    began, before = time.perf_counter(), cpu()
    asyncio.run(driver(case, root, server, f"{tool}-{uuid.uuid4().hex[:8]}"))
    seconds, used = time.perf_counter() - began, cpu() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {"case": case, "tool": tool, "seconds": round(seconds, 2), "cpu": round(used, 2), "mib": round(peak)}
        )
    )


def run_all(server: str, runs: int, cases: tuple[str, ...]) -> None:
    best: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="azure-bench-") as room:
        for case in cases:
            make(case, Path(room) / case)
            for _ in range(runs):
                for tool in TOOLS:  # in turn, so that a busy moment does not hit one tool only
                    state = {"ASYNCSYNC_STATE_DIR": tempfile.mkdtemp(dir=room)}
                    done = subprocess.run(
                        [sys.executable, __file__, server, case, tool, str(Path(room) / case)],
                        env=os.environ | state,
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    if done.returncode:
                        print(case, tool, "failed:", done.stderr.strip().splitlines()[-1:], flush=True)
                        continue
                    found = json.loads(done.stdout.strip().splitlines()[-1])
                    known = best.setdefault((case, tool), found)
                    best[case, tool] = min(known, found, key=lambda result: result["seconds"])
            shutil.rmtree(Path(room) / case)
            for tool in TOOLS:
                print(json.dumps(best.get((case, tool), {"case": case, "tool": tool})), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        run_one(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        chosen = tuple(sys.argv[3].split(",")) if len(sys.argv) > 3 else ("puts", "small", "large")
        run_all(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3, chosen)
