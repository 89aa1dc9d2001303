"""Private: the agent of a node, one process that does the work of all worker processes of Ray there.

So bandwidth, request slots and memory have one budget a node, a worker imports no client of a store, and what a killed
worker was uploading ends in a clean way. May import: Ray, the public face of asyncsync. Begin with ``node_agent.py``.
"""
