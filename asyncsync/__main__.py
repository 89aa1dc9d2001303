"""``python -m asyncsync`` is the command ``asyncsync``."""

from asyncsync.cli import main

if __name__ == "__main__":
    main()
