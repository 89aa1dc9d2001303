"""Private: an HTTP/1.1 client for object stores: connections, TLS in worker threads, ``sendfile``, deadlines.

May import: ``disk``, ``planning``, ``aio``. Begin with ``client.py``.
``connection.py`` has the limits of responses: bytes, time and rate of a body.
"""
