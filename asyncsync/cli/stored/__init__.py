"""The verbs for what a store holds: browse it, choose from it, change it.

May import: the public face, ``cli``. Begin with ``choose.py``.
"""
