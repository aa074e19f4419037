"""What a function does besides computing is found while it is recorded and named with file:line (A8)."""

from __future__ import annotations

import collections
import contextlib
import cProfile
import datetime
import io
import linecache
import logging
import sys
import threading
import time
import types
import warnings

import numpy as np
import pytest
from engine.programs import assert_same

import minidl as m
from accelerate.test_replay import X, accelerated, quietly
from minidl import TraceError, TraceWarning, dlaccelerate, dlarray, struct

TOTAL = 0
HISTORY: list = []


class Meter:
    def __init__(self):
        self.count, self.last, self.rows = 0, None, []

    def counted(self, x):
        self.count += 1  # HERE
        return x * 2

    def remembered(self, x):
        self.last = x  # HERE
        return x * 2

    def collected(self, x):
        self.rows.append(x)  # HERE
        return x * 2


def global_total(x):
    global TOTAL
    TOTAL += 1  # HERE
    return x * 2


def global_list(x):
    HISTORY.append(x)  # HERE
    return x * 2


def changes_of_closures():
    """(name, function, path, is it read)."""
    items, table, number, chosen = [1.0], {"k": 1.0, "n": 0}, 0, {1}
    queue, array, w = collections.deque([1.0]), np.ones(3, np.float32), dlarray(X.copy())
    p, box = struct(a=struct(b=dlarray(X))), types.SimpleNamespace(best=0.0)

    def append(x):
        items.append(2.0)  # HERE
        return x * 2

    def append_and_read(x):
        items.append(2.0)  # HERE
        return x * len(items)

    def assignment(x):
        table["k"] = 2.0  # HERE
        return x * 2

    def in_place(x):
        table["n"] += 1  # HERE
        return x * 2

    def deletion(x):
        if "k" in table:
            del table["k"]  # HERE
        return x * 2

    def update(x):
        table.update(k=5.0)  # HERE
        return x * 2

    def enclosing(x):
        nonlocal number
        number += 1  # HERE
        return x * 2

    def member(x):
        chosen.add(2)  # HERE
        return x * 2

    def pop(x):
        return x * queue.popleft()  # HERE

    def numbers_of_numpy(x):
        array[0] += 1  # HERE
        return x * 2

    def another_value_for_a_handle(x):
        w[0, 0] = 5.0  # HERE
        return x + w

    def field_of_a_struct(x):
        p.a.b = x * 2  # HERE
        return x * p.a.b

    def attribute(x):
        box.best = m.max(x, [], "all")  # HERE
        return x * 2

    def nested(x):
        def inner(y):
            items.insert(0, 3.0)  # HERE
            return y

        return inner(x) * 2

    return [
        (append, "items", False), (append_and_read, "items", True), (assignment, "table.k", False),
        (in_place, "table", True), (deletion, "table", True), (update, "table.k", False), (enclosing, "number", True),
        (member, "chosen", False), (pop, "queue", True), (numbers_of_numpy, "array", True),
        (another_value_for_a_handle, "w", True), (field_of_a_struct, "p.a.b", True), (attribute, "box.best", False),
        (nested, "items", False),
    ]  # fmt: skip


def changes():
    meter = Meter()
    return {
        function.__name__: (function, path, is_read)
        for function, path, is_read in [
            *changes_of_closures(), (meter.counted, "self.count", True), (meter.remembered, "self.last", False),
            (meter.collected, "self.rows", False), (global_total, "TOTAL", True), (global_list, "HISTORY", False),
        ]
    }  # fmt: skip


def here(function):
    """file:line of the line marked HERE."""
    code = getattr(function, "__func__", function).__code__
    for line in range(code.co_firstlineno, code.co_firstlineno + 6):
        if "# HERE" in linecache.getline(__file__, line):
            return f"{__file__}:{line}"
    raise AssertionError("no line is marked")


@pytest.mark.parametrize("name", changes())
def test_A8_changes_are_named_with_file_and_line(name):
    function, path, is_read = changes()[name]
    accfun = dlaccelerate(function)
    with pytest.warns(TraceWarning) as caught:
        accfun(dlarray(X))
    (text,) = [str(warning.message) for warning in caught]
    name = path if path.startswith("self") else path.partition(".")[0]
    assert f" {name}" in text and "not repeat on replay" in text
    assert here(function) in text
    assert accfun.NumTraces == (0 if is_read else 1)
    assert ("reads" in text) == is_read


def test_A8_one_is_told_once():
    accfun = dlaccelerate(global_list)
    with pytest.warns(TraceWarning) as caught:
        for k in range(4):
            accfun(dlarray(X), *([] if k < 3 else []))
    accfun(dlarray(X[:1]))  # recorded again
    assert len(caught) == 1


def test_A8_what_is_changed_and_read_is_always_right():
    count = 0

    def function(x):
        nonlocal count
        count += 1
        return x * count

    accfun = dlaccelerate(function)
    found = [quietly(accfun, dlarray(1.0)).item() for _ in range(4)]
    assert found == [1, 2, 3, 4] and accfun.NumTraces == 0
    accfun.Strict = True
    accfun.clearCache()
    with pytest.raises(TraceError, match=r"reads count and changes it at \S+test_effects.py:\d+"):
        accfun(dlarray(1.0))


class Stream:
    """What tests and notebooks put in the place of sys.stdout."""

    def write(self, text):
        return len(text)

    def flush(self):
        pass


def written(kind, tmp_path):
    log, file = logging.getLogger("test_effects"), io.StringIO()
    log.addHandler(logging.StreamHandler(file))

    def prints(x):
        print("x", x.shape)  # HERE
        return x * 2

    def prints_to(x):
        print("x", file=sys.stderr)  # HERE
        return x * 2

    def writes(x):
        file.write("x")  # HERE
        return x * 2

    def opens(x):
        with open(tmp_path / "log.txt", "a") as out:
            out.write("x")  # HERE
        return x * 2

    def logs(x):
        log.warning("x")  # HERE
        return x * 2

    return {function.__name__: function for function in (prints, prints_to, writes, opens, logs)}[kind]


@pytest.mark.parametrize("kind", ["prints", "prints_to", "writes", "opens", "logs"])
def test_A8_output(kind, tmp_path):
    function = written(kind, tmp_path)
    accfun = dlaccelerate(function)
    with pytest.warns(TraceWarning, match="that will not repeat on replay. Return what is needed") as caught:
        accfun(dlarray(X))
    assert len(caught) == 1 and here(function) in str(caught[0].message)
    for k in range(3):
        assert_same(accfun(dlarray(X + k)), (X + k) * 2)
    assert accfun.NumTraces == 1


def test_A8_output_to_a_stream_of_the_users(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Stream())
    accfun = dlaccelerate(written("prints", None))
    with pytest.warns(TraceWarning, match="print"):
        accfun(dlarray(X))


CLOCKS = {
    "time.time": lambda x: x * 0 + time.time(),
    "time.perf_counter": lambda x: x * 0 + time.perf_counter(),
    "datetime.now": lambda x: x * datetime.datetime.now().year,
}


@pytest.mark.parametrize("name", CLOCKS)
def test_A8_the_clock_is_never_frozen(name):
    accfun = dlaccelerate(CLOCKS[name])
    with pytest.warns(TraceWarning, match=rf"asks {name} at \S+test_effects.py:\d+, which says something else"):
        accfun(dlarray(X))
    assert accfun.NumTraces == 0


def pure(x):
    rows = []
    for k in range(3):
        rows.append(x * k)
    table = {"sum": sum(rows)}
    table.update(more=x)
    warnings.warn("careful", stacklevel=1)
    return table["sum"] + table["more"]


def test_A8_work_on_its_own_things_is_no_effect():
    counted, accfun = accelerated(pure)
    for k in range(3):
        with pytest.warns(UserWarning, match="careful") if k == 0 else contextlib.nullcontext():
            assert_same(accfun(dlarray(X + k)), (X + k) * 0 + (X + k) + (X + k) * 2 + (X + k))
    assert counted.count == 1


def test_A8_other_threads_are_not_ones_own():
    def function(x):
        thread = threading.Thread(target=print, args=("elsewhere",))
        thread.start()
        thread.join()
        return x * 2

    accfun = dlaccelerate(function)
    with pytest.warns(TraceWarning, match="has another thread work for it") as caught:
        for k in range(2):
            assert_same(accfun(dlarray(X + k)), (X + k) * 2)
    assert not any("print" in str(x.message) for x in caught)


def test_A8_a_profiler_is_left_alone():
    seen = []

    def profiler(frame, event, arg):
        seen.append(event)

    accfun = dlaccelerate(lambda x: x * 2)
    sys.setprofile(profiler)
    try:
        accfun(dlarray(X))
        assert sys.getprofile() is profiler and seen
    finally:
        sys.setprofile(None)
    with cProfile.Profile() as profile:
        dlaccelerate(lambda x: x * 3)(dlarray(X))
    assert profile.getstats() and sys.getprofile() is None


def test_A8_errors_leave_no_profiler_behind():
    def function(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        dlaccelerate(function)(dlarray(X))
    assert sys.getprofile() is None


def test_A8_containers_among_the_arguments_are_copies():
    def function(p, items):
        p.w = p.w * 2
        items.append(p.w)
        return p, items

    p, items = struct(w=dlarray(X)), []
    for accfun in (dlaccelerate(function), dlaccelerate(lambda p, items: (function(p, items), float(p.w[0, 0])))):
        for is_enabled in (True, True, False):
            accfun.Enabled = is_enabled
            quietly(accfun, p, items)
            assert_same(p.w, X)  # the caller's stays as it is, replayed or not
            assert items == []
