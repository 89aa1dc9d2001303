"""Private: views of stored experiments, trials and checkpoints, as their records describe them.

May import: ``remote`` and everything below it. Begin with ``experiment.py``.
"""
