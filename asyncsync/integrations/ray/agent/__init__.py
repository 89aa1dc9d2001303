"""Private: the agent of a node, one process that does the work of all worker processes of Ray there.

So bandwidth, request slots and memory have one budget per node, a worker imports no client of a store, and an upload of
a killed worker is ended and cleaned up. May import: Ray, the public face of asyncsync. Begin with ``agent_handle.py``.
"""
