"""Runs one command and writes what the kernel says it cost: `python measure.py OUT COMMAND...`.

A process of its own and small, because the kernel counts the memory of the process that starts a command as the
command's own until that has begun.
"""

import json
import os
import sys
import time


def main(out, command):
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    cost = {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * unit}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(cost | {"code": os.waitstatus_to_exitcode(status)}, file)


main(sys.argv[1], sys.argv[2:])
