"""Private: all access to the local disk, blocking, for worker threads.

May import: aio, planning, config, errors, runtime. Begin reading at ``files``, then ``scan`` and ``journal``.
"""
