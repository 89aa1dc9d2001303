"""Private: fetches the files of one tree and verifies them.

May import: sync.records, and everything that sync may import. Begin reading at ``tree_download``.
"""
