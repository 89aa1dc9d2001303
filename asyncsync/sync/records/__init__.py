"""Private: the records of trials and experiments, their one reader and their one writer.

May import: stores, aio, planning, config, errors. Begin reading at ``model``.
"""
