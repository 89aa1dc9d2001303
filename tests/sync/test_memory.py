"""The memory of a transfer follows the formula in the documentation, whatever the size of the file."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncsync.aio.threads import HASHERS

MIB = 1 << 20
SLOTS = 4
ALLOWED = (SLOTS * 2 + HASHERS + 4) * MIB
"""Two pieces a slot, one a thread that hashes, two batches of small files; see the design page."""
SPARE = 20 * MIB
"""For the allocator, and code that is used for the first time."""

PUSH = """
import asyncio, json, sys
from asyncsync import Syncer, TransferConfig

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

async def main(tree, endpoint, limit):
    options = {"endpoint_url": endpoint, "region": "us-east-1", "access_key": "a", "secret_key": "b"}
    transfer = TransferConfig(memory_limit=limit, part_size=8 << 20, multipart_threshold=9 << 20)
    async with Syncer(tree, "s3://b/p", transfer=transfer, storage_options=options) as syncer:
        await syncer.sync_up()
        before = peak()
        with open(f"{tree}/large", "wb") as file:
            file.truncate(int(sys.argv[4]))
        report = await syncer.sync_up()
    print(json.dumps({"sent": report.bytes_sent, "grown": peak() - before}))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts every body, keeps nothing, reports success."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            left = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            while left:
                left -= len(await reader.read(min(left, MIB)))
            name = "InitiateMultipartUploadResult" if "?uploads=" in head else "CompleteMultipartUploadResult"
            answer = f"<{name}><UploadId>u</UploadId><ETag>e</ETag></{name}>".encode()
            status = "404 Not Found" if head.startswith("head") else "200 OK"
            size = 0 if head.startswith("head") else len(answer)
            writer.write(f'HTTP/1.1 {status}\r\nETag: "e"\r\nContent-Length: {size}\r\n\r\n'.encode() + answer[:size])
            await writer.drain()
    writer.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
async def test_a_large_upload_stays_within_the_memory_that_was_allowed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small").write_bytes(b"x")
    server = await asyncio.start_server(sink, "127.0.0.1", 0, limit=2 * MIB)
    port = server.sockets[0].getsockname()[1]
    environment = os.environ | {"ASYNCSYNC_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-c", PUSH, str(tree), f"http://127.0.0.1:{port}", str(SLOTS * 2 * MIB), str(256 * MIB)]
    async with server:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
    assert process.returncode == 0
    result = json.loads(output)
    assert result["sent"] == 256 * MIB
    assert result["grown"] <= ALLOWED + SPARE, f"{result['grown'] / MIB:.0f} MiB"
