"""Private: a directory as a store. Start reading at :mod:`.store`.

Imports the disk helpers and the store interface.
"""
