"""The strict fake follows the documentation of the JSON API: one row a rule, with the page that states it."""

import json

import pytest
from gcs_fake.documented import ROWS, ask, filled


@pytest.fixture
def fake():
    with filled() as running:
        yield running


def dig(document, path):
    for name in path.split("."):
        if isinstance(document, list):
            document = document[int(name)]
        else:
            document = document.get(name)
    return document


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.source.rpartition('/')[2]}: {row.rule}")
async def test_the_documented_response(fake, http, row):
    generation = str(fake.buckets["b"].objects["a"].generation)
    body = row.body.replace(b"{G}", generation.encode())
    status, headers, content = await ask(
        http, fake, row.method, row.target.replace("{G}", generation), body, row.headers
    )
    assert status == row.status, content
    for path, value in row.says.items():
        assert dig(json.loads(content), path) == (value.replace("{G}", generation) if isinstance(value, str) else value)
    for name, value in row.sends.items():
        if value == "...":
            assert name in headers
        else:
            assert headers.get(name) == (value.replace("{G}", generation) if value else value)
    if row.content is not None:
        assert content == row.content
