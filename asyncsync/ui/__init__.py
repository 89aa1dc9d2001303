"""Public, optional: the page of an experiment in a browser, and the same as one file to mail.

:func:`serve` serves the page, :func:`write_report` writes the file. Both need ``asyncsync[ui]``. Everything shown comes
from the records in the store and from the status files of running engines.

May import: the public face, ``planning``, ``aio``. Begin with ``verdict.py``.
"""

from asyncsync.ui.html_report import write_report
from asyncsync.ui.page_server import serve

__all__ = ["serve", "write_report"]
