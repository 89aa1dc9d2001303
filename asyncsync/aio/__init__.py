"""Private: asyncio tools: run many tasks with a limit, worker threads, retries.

May import: ``planning``. Begin with ``tasks.py``.
"""
