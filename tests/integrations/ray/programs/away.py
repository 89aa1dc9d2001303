"""A checkpoint is reported while the store is away: stopped (it hangs) or ended (it refuses connections)."""

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "support"))

import servers
from common import SETTINGS, result
from ray.train import Checkpoint
from ray.train._internal.storage import StorageContext

SECONDS = SETTINGS["seconds"]


def report(context):
    with tempfile.TemporaryDirectory() as directory:
        for number in range(3):
            Path(directory, f"small_{number}").write_text("small")
        Path(directory, "weights.bin").write_bytes(os.urandom(20 << 20))
        began = time.monotonic()
        context.persist_current_checkpoint(Checkpoint.from_directory(directory))
        return time.monotonic() - began


def main():
    from asyncsync.integrations import ray as asyncsync_ray

    with tempfile.TemporaryDirectory() as data:
        with servers.running("seaweedfs", Path(data)) as server:
            server.create_bucket("away")
            os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
            options = {"endpoint_url": server.endpoint, "region": "us-east-1"}
            where = asyncsync_ray.storage("s3://away/exps", storage_options=options)
            context = StorageContext(experiment_dir_name="exp", trial_dir_name="trial", **where)
            context.current_checkpoint_index = 0
            usual = report(context)
            context.current_checkpoint_index = 1
            if SETTINGS["case"] == "hanging":
                os.kill(server.pid, signal.SIGSTOP)
                threading.Timer(SECONDS, lambda: os.kill(server.pid, signal.SIGCONT)).start()
                seconds = report(context)
                result(usual=usual, away=seconds, after=seconds - SECONDS)
                return
        seconds = []
        thread = threading.Thread(target=lambda: seconds.append(report(context)))
        thread.start()
        time.sleep(SECONDS)
        with servers.running("seaweedfs", Path(data), port=server.port):
            ready = time.monotonic()
            thread.join()
            result(usual=usual, away=seconds[0], after=time.monotonic() - ready)


main()
