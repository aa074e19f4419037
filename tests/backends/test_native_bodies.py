"""Bodies of MAP ops in plain calls: native code gives the bits of Numba's loops, for any arrays and any literals."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from engine.programs import LAYOUTS

import minidl as m
from minidl import adamupdate, dlarray
from minidl.backends.cpu import loops
from minidl.backends.cpu.native import bodies, compiler
from minidl.backends.cpu.native.compiler import unavailable
from minidl.core.apply import apply, apply_each
from minidl.core.op import OPS
from minidl.core.spec import DOUBLE, SINGLE, Spec
from minidl.kernels.cpu.threads import set_thread_count

RANDOM = np.random.default_rng(0)
BODIES = {"adam": (4, 6), "sgdm": (3, 2), "rmsprop": (3, 4), "moving_average": (2, 1), "half_square_loss": (2, 0),
          "batchnorm_fixed": (4, 0), "leakyrelu": (1, 1), "hypot": (2, 0)}  # arrays, numbers  # fmt: skip
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 1e-38, 3e38, -3e38, np.inf, -np.inf, np.nan, 0.1, 1e8, 1e-8]

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Nothing is known of earlier calls; afterwards any number of threads again."""
    for name in ("_kept_rows", "_kept_flats"):
        monkeypatch.setattr(loops, name, {})
    yield
    set_thread_count()


def computed(way, name, operands, monkeypatch, **params):
    """The results of a body for these operands, by native code or by Numba's loops."""
    monkeypatch.setenv("MINIDL_NATIVE", str(int(way == "native")))
    op, first = OPS[name], next(x for x in operands if isinstance(x, np.ndarray))
    specs = (Spec(first.shape, first.dtype),) * len(op.output_types)
    with np.errstate(all="ignore"):
        return loops.run_body(op, specs, list(operands), params)


def both(name, operands, monkeypatch, **params):
    """The results by native code, after a look that Numba's loops give the same bits in the same memory order."""
    found, expected = (computed(way, name, operands, monkeypatch, **params) for way in ("native", "loops"))
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype, a.strides) == (b.shape, b.dtype, b.strides)
        assert bits(a) == bits(b), name
    return found


def bits(x):
    """All bits, in logical order, but for those that tell one NaN from another."""
    return np.where(np.isnan(x), x.dtype.type(np.nan), x).tobytes()


def operands(name, shape, dtype):
    arrays, numbers = BODIES[name]
    lowest = 0 if name in ("adam", "rmsprop") else -2  # there are roots
    drawn = [np.asarray(RANDOM.uniform(lowest, 2, shape)).astype(dtype) for _ in range(arrays)]
    return [*drawn, *RANDOM.uniform(0.05, 0.95, numbers).tolist()]


# bits ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_any_size(name, dtype, monkeypatch):
    for shape in [(), (1,), (0,), (3, 0), (7,), (16,), (63,), (64,), (65,), (5, 13), (1000,), (20_011,)]:
        both(name, operands(name, shape, dtype), monkeypatch)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_special_values(name, dtype, monkeypatch):
    arrays, numbers = BODIES[name]
    with np.errstate(all="ignore"):
        values = np.array(list(itertools.product(SPECIAL, repeat=min(arrays, 3)))).astype(dtype)
    columns = [*values.T, *[values[:, 0]] * (arrays - 3)]
    both(name, [*columns, *[0.9] * numbers], monkeypatch)
    both(name, [*columns, *[1e300] * numbers], monkeypatch)  # inf in single precision


def test_each_operation_is_rounded_by_itself():
    """With fused multiply-adds the results would be others."""
    new, old = RANDOM.normal(size=(2, 1001)).astype("f")
    decay = np.float32(0.9)
    expected = decay * new + (np.float32(1) - decay) * old
    fused = np.float32(np.float64(decay) * new + np.float64((np.float32(1) - decay) * old))
    assert (fused != expected).any()
    (found,) = loops.run_body(OPS["moving_average"], (Spec((1001,), SINGLE),), [new, old, 0.9], {})
    assert bits(found) == bits(expected)


@pytest.mark.parametrize("first, second", [*itertools.product(range(len(LAYOUTS)), repeat=2)])
def test_same_bits_for_any_memory_layout(first, second, monkeypatch):
    p, g, m_, v, *numbers = operands("adam", (3, 4, 5), "float32")
    arrays = [LAYOUTS[first](p), LAYOUTS[second](g), LAYOUTS[first](m_), LAYOUTS[second](v)]
    found = both("adam", [*arrays, *numbers], monkeypatch)
    plain = both("adam", [*map(np.ascontiguousarray, arrays), *numbers], monkeypatch)
    assert [bits(np.ascontiguousarray(x)) for x in found] == [bits(x) for x in plain]


def test_what_is_the_same_everywhere_is_one_number(monkeypatch):
    x = RANDOM.normal(size=(4, 70)).astype("f")
    repeated = np.broadcast_to(np.float32(0.3), x.shape)
    (a,), (b,) = both("hypot", [x, repeated], monkeypatch), both("hypot", [x, np.array(repeated)], monkeypatch)
    assert bits(a) == bits(b)
    for operands_ in ([repeated, x], [repeated, repeated], [x, 0.3], [x, 3], [x, True]):
        both("hypot", operands_, monkeypatch)


@pytest.mark.parametrize("name", ["adam", "gelu", "sigmoid"])
def test_same_bits_with_any_number_of_threads(name):
    x = [np.abs(RANDOM.normal(size=100_003)).astype("f") for _ in range(4)]
    given = [*x, *[0.3] * 6] if name == "adam" else x[:1]
    specs = (Spec(x[0].shape, SINGLE),) * len(OPS[name].output_types)
    seen = set()
    for threads in (1, 2, 3):
        set_thread_count(threads)
        rows = loops.run_each(OPS[name], [(specs, given), (specs, given)], {})
        rows.append(loops.run_body(OPS[name], specs, given, {}))
        seen |= {tuple(map(bits, row)) for row in rows}
    assert len(seen) == 1


# what is compiled ---------------------------------------------------------------------------------------------------
def test_one_function_serves_all_sizes_and_numbers(monkeypatch):
    calls = []
    monkeypatch.setattr(bodies, "compiled", lambda text: calls.append(text) or compiler.compiled(text))
    for size, rate in itertools.product((1, 3, 10_000), (0.1, 0.2, 1e300, np.inf)):
        x = RANDOM.normal(size=size)
        (found,) = loops.run_body(OPS["leakyrelu"], (Spec(x.shape, DOUBLE),), [x, rate], {})
        assert bits(found) == bits(np.where(x >= 0, x, x * rate))
    assert len(calls) == 1


def test_literals_within_a_body_are_no_part_of_the_code(monkeypatch):
    calls = []
    monkeypatch.setattr(bodies, "compiled", lambda text: calls.append(text) or compiler.compiled(text))
    x = RANDOM.normal(size=50).astype("f")
    for least in (0.0, -0.0, 0.25, -3.0, 1e-50, np.inf):
        with np.errstate(all="ignore"):
            (found,) = loops.run_body(OPS["bounded"], (Spec(x.shape, SINGLE),), [x], {"least": least})
            assert bits(found) == bits(np.where(x < np.float32(least), np.float32(least), x))
    assert len(set(calls)) == 1


def test_code_comes_from_disk_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "_codes", {})
    loop = OPS["sgdm"].loop((SINGLE,) * 5, (True,) * 3 + (False,) * 2, {})
    assert not bodies.compile_body(loop)[0].is_from_disk
    compiler._codes.clear()
    assert bodies.compile_body(loop)[0].is_from_disk
    assert not list(tmp_path.glob("k_*.py"))


def test_the_cache_of_shapes_is_bounded(monkeypatch):
    monkeypatch.setattr(loops, "MOST_ROWS", 5)
    for n in range(1, 20):
        x = np.ones(n, np.float32)
        assert loops.run_body(OPS["square_loss"], (Spec((n,)),), [x, 0.0], {})[0].tolist() == [1.0] * n
        assert len(loops._kept_rows) <= 5


@pytest.mark.parametrize("how", ["no LLVM", "no words", "turned off"])
def test_where_it_cannot_be_compiled_loops_do_it(how, monkeypatch):
    calls = []
    monkeypatch.setattr(bodies, "compile_body", lambda loop: calls.append(loop))
    if how == "no LLVM":
        monkeypatch.setattr(compiler, "_unavailable", lambda: "It is not there.")
    elif how == "no words":
        monkeypatch.setattr(bodies, "is_supported", lambda loop: False)
    else:
        monkeypatch.setenv("MINIDL_NATIVE", "0")
    shapes = [(5,), (2, 3), (), (0,), (9000,)]
    p, g = ([dlarray(RANDOM.normal(size=s).astype("f")) for s in shapes] for _ in range(2))
    found = adamupdate(p, g, None, None, 1)
    monkeypatch.undo()
    for a, b in zip(itertools.chain(*found), itertools.chain(*adamupdate(p, g, None, None, 1))):
        assert bits(a.extractdata()) == bits(b.extractdata())
    assert not calls


# many at once -------------------------------------------------------------------------------------------------------
def rows_of_all_kinds(count):
    shapes = [(), (1,), (3, 3, 2, 8), (0, 4), (40_000,), (9000, 2), (5, 7), (2, 0)]
    for k in range(count):
        dtype, shape = ("float32", "float64")[k % 3 == 1], shapes[k % len(shapes)]
        yield [LAYOUTS[(k + i) % len(LAYOUTS)](RANDOM.uniform(0.1, 1, shape).astype(dtype)) for i in range(4)]


def test_many_rows_are_as_each_alone():
    op, numbers = OPS["adam"], (0.1, 0.9, 0.1, 0.99, 0.01, 1e-8)
    rows = [((Spec(x[0].shape, x[0].dtype),) * 3, [*x, *numbers]) for x in rows_of_all_kinds(40)]
    together = loops.run_each(op, rows, {})
    assert len(together) == 40
    for (specs, given), found in zip(rows, together):
        for a, b, spec in zip(found, loops.run_body(op, specs, given, {}), specs, strict=True):
            assert (a.shape, a.dtype, a.strides) == (spec.shape, spec.dtype, b.strides) and bits(a) == bits(b)
    assert loops.run_each(op, [], {}) == []


def test_rows_whose_numbers_differ():
    x = np.arange(3.0)
    specs = (Spec((3,), DOUBLE),)
    op = OPS["leakyrelu"]
    found = loops.run_each(op, [(specs, [-x, 0.5]), (specs, [-x, 2]), (specs, [-x, -0.0])], {})
    assert [row[0].tolist() for row in found] == [[0, -0.5, -1], [0, -2, -4], [0, 0, 0]]
    mixed = loops.run_each(op, [(specs, [-x, x]), (specs, [-x, 3.0]), (specs, [-x, True])], {})
    assert [row[0].tolist() for row in mixed] == [[0, -1, -4], [0, -3, -6], [0, -1, -2]]


def test_apply_each_is_apply_for_each():
    op = OPS["sgdm"]
    usual = [dlarray(RANDOM.normal(size=s).astype("f"), f) for s, f in [((2, 3), "CB"), ((4,), None), ((0, 1), "CB")]]
    others = [dlarray(1.0), dlarray(RANDOM.normal(size=(5, 2)), "SC"), dlarray(np.ones(4, bool))]
    for column, rate in itertools.product((usual, usual[:1], usual[1:], []), (0.1, 1, others[:1] * 3)):
        rate = rate[: len(column)] if isinstance(rate, list) else rate
        check_each(op, (column, column, [x + 1 for x in column], rate, 0.9))
    check_each(op, (usual[:2], [usual[0], usual[1].astype("double")], usual[:2], 0.1, 0.9))
    check_each(op, (usual[:1], others[1:2], usual[:1], 0.1, 0.9))  # expanded by label
    check_each(op, (others[2:], others[2:], others[2:], 0.1, 0.9))


def check_each(op, operands_):
    columns = apply_each(op, operands_)
    assert len(columns) == 2
    rows = list(zip(*[x if isinstance(x, list) else [x] * len(operands_[0]) for x in operands_]))
    for row, found in zip(rows, zip(*columns), strict=True):
        for a, b in zip(found, apply(op, row, {}), strict=True):
            assert (a.dims(), a.dtype, a.tolist()) == (b.dims(), b.dtype, b.tolist())


def test_results_share_nothing():
    rows = [((Spec((n,)),) * 2, [*(np.ones(n, "f") for _ in range(3)), 0.5, 0.5]) for n in (3, 3, 9000)]
    first = loops.run_each(OPS["sgdm"], rows, {})
    kept = [[y.copy() for y in row] for row in first]
    inputs = [x for _, given in rows for x in given[:3]]
    for x in inputs:
        x += 1
    second = loops.run_each(OPS["sgdm"], rows, {})
    arrays = [*inputs, *itertools.chain(*first), *itertools.chain(*second)]
    for a, b in itertools.combinations(arrays, 2):
        assert not np.shares_memory(a, b)
    for row, copies in zip(first, kept):
        for y, copy in zip(row, copies):
            assert y.tolist() == copy.tolist() and y.flags.writeable


def test_many_python_threads_at_once():
    p = [dlarray(RANDOM.normal(size=n).astype("f")) for n in (3, 500, 20_000)]
    expected = [[x.tolist() for x in adamupdate(p, p, None, None, t)[0]] for t in range(1, 9)]
    wrong = []

    def work(t):
        for _ in range(30):
            if [x.tolist() for x in adamupdate(p, p, None, None, t)[0]] != expected[t - 1]:
                wrong.append(t)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# addresses ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_known", [True, False])
def test_addresses(is_known, monkeypatch):
    assert loops._is_laid_out_as_known()
    monkeypatch.setattr(loops, "_is_laid_out_as_known", lambda: is_known)
    x = RANDOM.normal(size=(4, 5))
    arrays = [x, x[1:, ::2], x.T, np.empty(0), np.array(1.0), np.broadcast_to(x[0], (3, 5)), x.view(np.recarray)]
    assert loops.addresses_of(arrays) == [y.ctypes.data for y in arrays]
    np.testing.assert_allclose(m.hypot(dlarray(x), 2.0), np.hypot(x, 2.0), rtol=1e-15)
