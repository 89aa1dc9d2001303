"""Private: tools for asyncio that know nothing of stores and trees.

May import: planning, errors, runtime. Begin reading at ``tasks``, then ``threads``.
"""
