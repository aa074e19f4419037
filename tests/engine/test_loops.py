"""The algebra of loops: finer, coarser and joined iteration spaces compute the same."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from engine.interpreter import run_loop
from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.engine.layout import dense
from minidl.engine.loops import joined, kept_stores, merged, refined, split

ADD, MAX = "({0} + {1})", "fmax({0}, {1})"


def run(loop, size=400):
    """All buffers after the loop: those it reads are filled with numbers, those it writes with -1."""
    random = np.random.default_rng(0)
    memory = {buffer: random.integers(-9, 9, size).astype(float) for buffer in sorted(loop.reads)}
    memory |= {buffer: np.full(size, -1.0) for buffer in loop.writes}
    run_loop(loop, memory.__getitem__)
    return memory


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@st.composite
def loops(draw, sizes=None, first=0, known=()):
    """A loop over small sizes that loads two buffers, computes and stores; `known` are stores of an earlier loop."""
    sizes = sizes or tuple(draw(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=3)))
    rank = len(sizes)

    def access(buffer, *, is_store=False):
        if known and not is_store and draw(st.booleans()):
            return draw(st.sampled_from(known))
        strides = list(dense(sizes, draw(st.sampled_from([tuple(range(rank)), tuple(range(rank))[::-1]]))))
        if not is_store:
            strides = [draw(st.sampled_from([s, s, s, 0, 2 * s])) for s in strides]
            offset = draw(st.integers(0, 3))
            if draw(st.booleans()):
                k = draw(st.integers(0, rank - 1))
                offset, strides[k] = offset + strides[k] * (sizes[k] - 1), -strides[k]
            return Access(buffer, offset, tuple(strides))
        return Access(buffer, 0, tuple(strides))

    steps = [Step("", (), "float64", access=access(first + i)) for i in range(2)]
    steps.append(Step("({0} + {1} * 2)", (Temp(0), Temp(1)), "float64", "float64"))
    steps.append(Step("maximum({0}, {1})", (Temp(2), 1.5), "float64", "float64"))
    stores = [Store(Temp(3), access(first + 2, is_store=True), "float64")]
    if draw(st.booleans()):
        reduced = draw(st.sets(st.integers(0, rank - 1), min_size=1))
        kept = dense([1 if i in reduced else n for i, n in enumerate(sizes)], range(rank))
        strides = tuple(0 if i in reduced else s for i, s in enumerate(kept))
        combine, identity = draw(st.sampled_from([(ADD, 0.0), (MAX, -np.inf)]))
        stores.append(Store(Temp(2), Access(first + 3, 0, strides), "float64", combine, identity))
    return Loop(sizes, steps, stores)


# sizes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("a, b, expected", [
    ((12,), (3, 4), (3, 4)), ((3, 4), (12,), (3, 4)), ((6, 2), (3, 4), (3, 2, 2)), ((4, 6), (6, 4), None),
    ((2, 3), (6, 1), (2, 3)), ((), (), ()), ((), (1,), ()), ((401408,), (25088, 16), (25088, 16)), ((5,), (4,), None),
    ((0,), (0, 5), None), ((0, 5), (0, 5), (0, 5)), ((2, 0), (0, 2), None), ((0,), (1,), None),
])  # fmt: skip
def test_refined(a, b, expected):
    found = refined(a, b)
    assert (tuple(n for n in found if n != 1) if found is not None else None) == expected


@given(st.lists(st.integers(1, 6), max_size=4), st.lists(st.integers(1, 6), max_size=4))
def test_refined_splits_both(a, b):
    found = refined(tuple(a), tuple(b))
    if found is not None:
        def ends(sizes):
            return set(np.cumprod([1, *reversed(sizes)]).tolist())

        assert ends(a) | ends(b) == ends(found)


@settings(max_examples=100, derandomize=True)
@given(loops(), st.data())
def test_a_split_loop_computes_the_same(loop, data):
    finer = []
    for n in loop.sizes:
        factor = data.draw(st.sampled_from([k for k in (1, 2, 3, 4) if n % k == 0]))
        finer += [n // factor, factor]
    assert same(run(split(loop, tuple(finer))), run(loop))


@settings(max_examples=100, derandomize=True)
@given(loops())
def test_a_merged_loop_computes_the_same(loop):
    coarse = merged(loop)
    assert same(run(coarse), run(loop)) and len(coarse.sizes) <= len(loop.sizes)
    assert merged(coarse) == coarse
    assert same(run(split(coarse, loop.sizes)), run(loop))


def test_merged_joins_what_is_contiguous_for_all():
    def flat(k):
        return Loop((2, 3, 4), [Step("", (), "float64", access=Access(0, 0, (12, 4, 1)))],
                    [Store(Temp(0), Access(1, 0, (12, k, 1)), "float64")])  # fmt: skip

    assert merged(flat(4)).sizes == (24,) and merged(flat(8)).sizes == (2, 3, 4)
    rows = Loop((2, 3, 4), [Step("", (), "float64", access=Access(0, 0, (12, 4, 1)))],
                [Store(Temp(0), Access(1, 0, (1, 0, 0)), "float64", ADD)])  # fmt: skip
    assert merged(rows).sizes == (2, 12)


# two loops as one -------------------------------------------------------------------------------------------------
@settings(max_examples=200, derandomize=True)
@given(st.data())
def test_joined_loops_compute_what_both_did(data):
    first = data.draw(loops())
    known = [store.access for store in first.stores]
    second = data.draw(loops(sizes=data.draw(st.sampled_from([first.sizes, (int(np.prod(first.sizes)),)])), first=10))
    if len(second.sizes) == len(first.sizes):
        second = data.draw(loops(sizes=first.sizes, first=10, known=tuple(known)))
    both = joined(first, second)
    if both is None:
        return
    before = run(first)
    memory = {**run(second), **before}
    run_loop(second, memory.__getitem__)
    fresh = {k: np.full(400, -1.0) if k in both.writes else v.copy() for k, v in memory.items()}
    run_loop(both, fresh.__getitem__)
    assert same(fresh, memory)


def chain(*, offset=0, strides=(3, 1), combine=""):
    first = Loop((2, 3), [Step("", (), "float64", access=Access(0, 0, (3, 1)))],
                 [Store(Temp(0), Access(1, 0, (3, 1) if not combine else (1, 0)), "float64", combine)])  # fmt: skip
    second = Loop((2, 3), [Step("", (), "float64", access=Access(1, offset, strides)),
                           Step("(-{0})", (Temp(0),), "float64", "float64")],
                  [Store(Temp(1), Access(2, 0, (3, 1)), "float64")])  # fmt: skip
    return joined(first, second)


def test_only_what_the_same_iteration_has_stored_passes_in_registers():
    assert len([s for s in chain().steps if s.access]) == 1
    assert chain(offset=1) is None and chain(strides=(1, 2)) is None  # another iteration's element
    assert chain(strides=(1, 0), combine=ADD) is None  # a sum that is not complete yet


def test_what_both_load_is_loaded_once():
    load = Step("", (), "float64", access=Access(0, 0, (1,)))
    other = Step("", (), "float64", access=Access(0, 5, (-1,)))
    loops = [Loop((6,), [load, other], [Store(Temp(0), Access(k, 0, (1,)), "float64")]) for k in (1, 2)]
    assert len(joined(*loops).steps) == 2


# stores -----------------------------------------------------------------------------------------------------------
@settings(max_examples=50, derandomize=True)
@given(loops())
def test_kept_stores(loop):
    assert kept_stores(loop, set(loop.writes)) == loop
    everything = run(loop)
    for buffer in loop.writes:
        one = kept_stores(loop, {buffer})
        assert one.writes == [buffer] and np.array_equal(run(one)[buffer], everything[buffer])
    nothing = kept_stores(loop, set())
    assert not nothing.stores and not nothing.steps


def test_a_loop_reads_line_by_line():
    loop = Loop((2, 3), [Step("", (), "float32", access=Access("v0", 1, (3, 1))),
                         Step("({0} * {1})", (Temp(0), 2.0), "float32", "float32")],
                [Store(Temp(1), Access("v1", 0, (1, 0)), "float32", ADD)])  # fmt: skip
    assert str(loop).splitlines() == [
        "loop over [2, 3]", "  t0 = load v0 from 1 strides [3, 1]", "  t1 = (t0 * 2.0)",
        "  combine by ({0} + {1}) t1 -> v1 strides [1, 0]",
    ]  # fmt: skip
