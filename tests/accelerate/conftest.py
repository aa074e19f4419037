"""Every behaviour of a replay holds on every backend: each test here runs once on each."""

from __future__ import annotations

import pytest

from minidl.accelerate.audits import Rerun
from minidl.backends import BACKENDS, use_backend


@pytest.fixture(params=sorted(BACKENDS), autouse=True)
def backend(request):
    """The name of the backend in use."""
    only = request.node.get_closest_marker("only_on")
    if only and request.param != only.args[0]:
        pytest.skip(f"looks into what the {only.args[0]} backend alone has")
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def audits_do_not_count(monkeypatch):
    """Functions that count their runs (`test_replay.Counted`) are as if they had not been audited."""
    from accelerate.test_replay import Counted

    run = Rerun.__init__

    def uncounted(self, *args):
        before = [(function, function.count) for function in list(Counted.made)]
        try:
            run(self, *args)
        finally:
            for function, count in before:
                while function.count > count:
                    function.counter.acquire(blocking=False)

    monkeypatch.setattr(Rerun, "__init__", uncounted)
