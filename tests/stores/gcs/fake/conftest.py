"""A plain HTTP client for the strict fake."""

import pytest


@pytest.fixture
async def http():
    aiohttp = pytest.importorskip("aiohttp")
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session
