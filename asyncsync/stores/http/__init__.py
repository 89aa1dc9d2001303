"""Private: an HTTP/1.1 client for object stores: connections, TLS in worker threads, ``sendfile``, deadlines.

May import: ``disk``, ``planning``, ``aio``. Begin with ``client.py``.
"""
