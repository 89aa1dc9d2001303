"""Private: decisions as pure functions. No event loop, no clock, no disk: time and facts are arguments.

Imports no other package of ours. Begin reading at ``manifest`` (the data), ``changes`` and ``schedule`` (the
decisions).
"""
