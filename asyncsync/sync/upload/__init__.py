"""Private: sends the changed files of one tree.

May import: sync.records, and everything that sync may import. Begin reading at ``tree_upload``, then ``large_file``.
"""
