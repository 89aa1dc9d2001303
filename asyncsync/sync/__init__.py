"""Private: keeps one directory and one prefix of a store in sync.

May import: stores, disk, aio, planning, and the modules of public data (config, events, report, errors). Begin reading
at ``syncer`` (one directory on request) and ``tree`` (one pass); ``upload``, ``download`` and ``records`` do the work.
"""
