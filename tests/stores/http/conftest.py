"""The HTTP client and its server, with and without TLS."""

import pytest
from http_wire import Wire


@pytest.fixture(params=["plain", "tls"])
def wire(request):
    return Wire(request.getfixturevalue("certificate") if request.param == "tls" else None)
