"""SIGKILL in the middle of a large upload to the strict fake of Cloud Storage, then the same push again.

``python tests/support/gcs_killing.py [--mib 1024] [--at 0.5] [--forgetful] [--link MIB]`` prints the bytes received
twice and the memory of both processes. Exit code 1: more than 8 MiB came twice, a finished part was sent again, or the
object differs from the file. ``--forgetful``: the server keeps nothing of a chunk that the kill cut. ``--link``: the
path carries so many MiB a second until the kill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import google_crc32c
from gcs_fake import GcsFake

MIB = 1 << 20
CHUNK = 8 * MIB
"""Most bytes that may be sent again, in all."""


def push_and_tell(tree: str, uri: str, options: str, link: str) -> None:
    """In a process of its own: prints the bytes sent, the seconds, and the peak memory."""
    from asyncsync import TransferConfig, push

    began, transfer = time.monotonic(), TransferConfig(bandwidth_limit=float(link) * MIB or None)
    report = asyncio.run(push(tree, uri, storage_options=json.loads(options), transfer=transfer))
    seconds = time.monotonic() - began
    print(json.dumps({"sent": report.bytes_sent, "seconds": seconds, "peak_mib": peak_of("self")}))


def start(tree: Path, fake: GcsFake, link: float) -> subprocess.Popen[str]:
    options = json.dumps(fake.storage_options)
    command = [sys.executable, __file__, "--push", str(tree), "gs://b/run", options, str(link)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def stored(fake: GcsFake) -> int:
    """Bytes of finished parts."""
    parts = [item for name, item in list(fake.buckets["b"].objects.items()) if "/parts/" in name]
    return sum(len(item.data) for item in parts)


def begun(fake: GcsFake) -> int:
    """Bytes received of unfinished parts."""
    return sum(len(session.data) for session in fake.sessions.open.values() if session.answer is None)


def peak_of(pid: int | str) -> float:
    """MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def run(room: Path, size: int, at: float, link: float, *, forgetful: bool) -> bool:
    os.environ["ASYNCSYNC_STATE_DIR"] = str(room / "state")
    big = room / "tree/big"
    big.parent.mkdir()
    crc = 0
    with big.open("wb") as file:
        for _ in range(size // MIB):
            piece = os.urandom(MIB)
            crc = google_crc32c.extend(crc, piece)
            file.write(piece)
    with GcsFake("b") as fake:
        fake.sessions.forgetful = forgetful
        killed = start(big.parent, fake, link)
        while stored(fake) < at * size:
            if killed.poll() is not None:
                raise SystemExit("the upload ended before it could be killed")
            time.sleep(0.005)
        peak = peak_of(killed.pid)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        time.sleep(0.5)  # bytes in flight arrive
        there, came = stored(fake) + begun(fake), sum(seen.size for seen in fake.seen)
        second = json.loads(start(big.parent, fake, 0).communicate()[0])
        total = sum(seen.size for seen in fake.seen)
        item = fake.buckets["b"].objects["run/big"]
        right = len(item.data) == size and google_crc32c.value(item.data) == crc
        left = [name for name in fake.buckets["b"].objects if "/parts/" in name]
    again = second["sent"] - (size - there)
    print(f"killed with {there / MIB:.0f} of {size / MIB:.0f} MiB stored, {came / MIB:.0f} MiB received")
    print(f"second run: {second['sent'] / MIB:.0f} MiB in {second['seconds']:.1f} s; of what was stored: {again} bytes")
    print(
        f"received in all {total / MIB:.1f} MiB: {(total - size) / MIB:.1f} MiB twice, requests and manifest included"
    )
    print(f"memory: {peak:.0f} MiB until the kill, {second['peak_mib']:.0f} MiB in the second run")
    print(f"object right: {right}; parts left: {len(left)}")
    return right and not left and again <= 0 and total - size <= CHUNK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--at", type=float, default=0.5)
    parser.add_argument("--forgetful", action="store_true")
    parser.add_argument("--link", type=float, default=0)
    parser.add_argument("--push", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.push:
        push_and_tell(*given.push)
        return
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it logs each connection that the kill cut
    with tempfile.TemporaryDirectory(prefix="asyncsync-kill-") as room:
        sys.exit(not run(Path(room), given.mib * MIB, given.at, given.link, forgetful=given.forgetful))


if __name__ == "__main__":
    main()
