"""The command ``asyncsync``, a module for each verb or pair of verbs.

May import: the public face, ``planning``, ``aio``. Begin with ``app.py``, which runs every command; ``demo.py`` is an
example of the library from start to end.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with one of the codes that ``asyncsync --help`` lists."""
    from asyncsync.cli.app import cli

    cli(prog_name="asyncsync")


__all__ = ["main"]
