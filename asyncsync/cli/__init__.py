"""The command ``asyncsync``: push, pull, watch, ls, verify, prune, demo.

=================  ==========================================================
``app``            the group, and ``run``: what every command has in common
``options``        common options, human sizes, addresses
``output``         lines, tables, progress bars, one JSON document
``transfer``       push and pull
``watching``       watch
``listing``        ls
``checking``       verify and prune
``demo``           a sweep from start to end, readable as an example
=================  ==========================================================
"""

from __future__ import annotations


def main() -> None:
    """Entry point; ends the process with one of the exit codes that ``asyncsync --help`` lists."""
    from asyncsync.cli.app import cli

    cli(prog_name="asyncsync")


__all__ = ["main"]
