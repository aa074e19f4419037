"""Every behaviour of a replay holds on every backend: each test here runs once on each."""

from __future__ import annotations

import pytest

from minidl.backends import BACKENDS, use_backend


@pytest.fixture(params=sorted(BACKENDS), autouse=True)
def backend(request):
    """The name of the backend in use."""
    only = request.node.get_closest_marker("only_on")
    if only and request.param != only.args[0]:
        pytest.skip(f"looks into what the {only.args[0]} backend alone has")
    with use_backend(request.param):
        yield request.param
