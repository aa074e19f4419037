"""Ops of the user's own: docs/custom-ops.md is run as it stands; what can go wrong is explained.

The page's CUDA C++ kernel runs on the shim (or a GPU), its Numba kernel in Numba's CUDA simulator, in a process of its
own: the simulator is chosen before Numba is imported. It takes NumPy arrays only and has no `external_stream`.
SIMULATED puts the memory of the shim's arrays in their place, by Numba's own hook for arguments, and says what a stream
is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ops.finite_differences import check_derivatives

from minidl import (
    KERNEL,
    MAP,
    DeviceError,
    DTypeError,
    MinidlError,
    OptionError,
    ShapeError,
    Spec,
    TraceError,
    dlaccelerate,
    dlarray,
    dlfeval,
    dlgradient,
    gather,
    gpuArray,
    op,
    sum,
)
from minidl.core.op import OPS, REDUCE, VIEW

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "custom-ops.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python ?([\w.]*)\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(autouse=True)
def own_ops():
    """Forget the ops that a test declares."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def run_page(*kinds):
    """The page's blocks of these kinds, run in order; the names they define."""
    names = {"__name__": "custom_ops_page"}
    for kind, text in BLOCKS:
        if kind in kinds:
            exec(compile(text, "docs/custom-ops.md", "exec"), names)
    return names


@pytest.fixture
def page():
    return run_page("")


@pytest.fixture
def page_on_gpu(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", device.library)
    return run_page("", "cupy")


# the page -----------------------------------------------------------------------------------------------------------
def test_the_page_says_what_it_prints(page, capsys):
    run_page("")
    printed = capsys.readouterr().out
    assert "2(C) × 1(B)" not in printed and "[-0.5   0.75]" in printed and "[0.25   0.0625]" in printed
    assert [kind for kind, _ in BLOCKS] == ["", "", "", "numba.cuda", "cupy", ""]


@pytest.mark.parametrize("name", ["softsign", "rownorm"])
def test_derivatives(page, random, name):
    check_derivatives(page[name], random.normal(size=(3, 4)))
    page["rownorm"].vjp_rule = None  # the body's own derivative
    check_derivatives(page[name], random.normal(size=(3, 4)))


def test_labels(page, random):
    X = dlarray(random.normal(size=(3, 4)), "CB")
    assert page["softsign"](X).dims() == page["normalized"](X).dims() == "CB"
    assert page["rownorm"](X).dims() == ""


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_accelerated(page, random, numerics):
    rownorm, softsign = page["rownorm"], page["softsign"]

    def fun(X):
        y = rownorm(softsign(X).T)  # transposed: the kernel gets a dense copy
        loss = sum(y * y * y, "all")
        return y, loss, dlgradient(loss, X)

    accfun = dlaccelerate(fun, Numerics=numerics)
    for _ in range(3):
        X = dlarray(random.normal(size=(3, 4)))
        for found, expected in zip(dlfeval(accfun, X), dlfeval(fun, X)):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert accfun.HitRate == pytest.approx(200 / 3)
    assert "<- rownorm" in str(accfun.trace()) or numerics == "exact"


# on the GPU ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernel_in_cuda(page_on_gpu, device, random, dtype):
    rownorm = page_on_gpu["rownorm"]
    for shape in ((5, 7), (1, 40), (0, 3), (9, 1)):
        x = random.normal(size=shape).astype(dtype)
        for order in device.orders():
            device.set_order(order)
            y = rownorm(gpuArray(dlarray(x)), epsilon=0.5)
            assert y.device == "gpu" and y.dtype == dtype
            expected = x / np.sqrt((x.astype(float) ** 2).sum(1, keepdims=True) + 0.5)
            np.testing.assert_allclose(y, expected, rtol=1e-12 if dtype == "float64" else 1e-6)
    x = random.normal(size=(3, 4))
    np.testing.assert_allclose(rownorm(gpuArray(dlarray(x)).T), rownorm(dlarray(x).T), rtol=1e-12)


def test_derivatives_on_the_gpu(page_on_gpu, random):
    for name in ("softsign", "rownorm"):
        check_derivatives(lambda x, f=page_on_gpu[name]: gather(f(gpuArray(x))), random.normal(size=(3, 4)))


def test_accelerated_on_the_gpu(page_on_gpu, random):
    rownorm, softsign = page_on_gpu["rownorm"], page_on_gpu["softsign"]

    def fun(X):
        loss = sum(rownorm(softsign(X).T) ** 3, "all")
        return loss, dlgradient(loss, X)

    accfun = dlaccelerate(fun)
    for _ in range(3):
        X = dlarray(random.normal(size=(3, 4)))
        for found, expected in zip(dlfeval(accfun, gpuArray(X)), dlfeval(fun, X)):
            assert found.device == "gpu"
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert accfun.HitRate == pytest.approx(200 / 3)


SIMULATED = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
import cusim
from numba import cuda
from types import SimpleNamespace

sys.modules["cupy"] = cusim
launches = []

class OfTheShim:  # Numba's hook for arguments of other libraries
    def prepare_args(self, kind, x, stream, retr):
        if hasattr(x, "__cuda_array_interface__"):
            x = np.asarray(SimpleNamespace(__array_interface__=x.__cuda_array_interface__, owner=x))
            launches.append(x.shape)
        return kind, x

jit = cuda.jit

def jit_for_the_shim(function):
    made = jit(function)
    made.extensions.append(OfTheShim())
    return made

cuda.jit = jit_for_the_shim
cuda.external_stream = lambda address: cuda.stream()

from minidl.kernels.cuda import launch
launch.use(cusim)
import test_custom_ops as t
from minidl import dlarray, gather, gpuArray
page = t.run_page("", "numba.cuda")
x = np.random.default_rng(0).normal(size=(5, 3))
for dtype in ("float32", "float64"):
    y = page["rownorm"](gpuArray(dlarray(x.astype(dtype))), epsilon=0.5)
    assert y.device == "gpu" and y.dtype == dtype
    np.testing.assert_allclose(y, x / np.sqrt((x * x).sum(1, keepdims=True) + 0.5), rtol=1e-6)
assert launches == [(5, 3)] * 4
t.check_derivatives(lambda x: gather(page["rownorm"](gpuArray(x))), x)
print("right")
"""


def test_numba_kernel_in_the_simulator():
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    found = subprocess.run([sys.executable, "-c", SIMULATED, str(ROOT), str(ROOT / "tests")], env=environment,
                           capture_output=True, text=True, timeout=300)  # fmt: skip
    assert found.stdout.endswith("right\n"), found.stdout + found.stderr


def test_where_there_is_no_kernel(device, explained):
    @op(KERNEL)
    def bodiless(x):
        """Twice x."""

    @op(KERNEL)
    def embodied(x):
        """Twice x."""
        return x + x

    X = dlarray([1.0, 2.0])
    explained(lambda: bodiless(X), DeviceError, '@bodiless.kernel("cpu"), or a body.')
    for f in (bodiless, embodied):
        f.kernel("cpu")(lambda y, x: np.multiply(2, x, out=y) and None)
    bodiless.kernel("cpu")(lambda y, x: y.__setitem__(..., 2 * x))
    embodied.kernel("cpu")(lambda y, x: y.__setitem__(..., 2 * x))
    error = explained(lambda: bodiless(gpuArray(X)), DeviceError, '@bodiless.kernel("gpu")')
    assert "gather(X)" in str(error) and "on the gpu" in str(error)
    assert embodied(gpuArray(X)).tolist() == [2.0, 4.0]
    assert bodiless(gather(gpuArray(X))).tolist() == [2.0, 4.0]


def test_infer_need_not_know_of_devices(device):
    @op(KERNEL)
    def widened(x):
        """Two copies of x below each other."""

    widened.infer(lambda x: Spec((2, *x.shape), x.dtype))

    @widened.kernel("gpu")
    def _(y, x):
        for i in range(2):
            y[i].set(x.get())

    assert widened(gpuArray(dlarray([1.0, 2.0]))).tolist() == [[1.0, 2.0]] * 2


# several results, empty arrays ----------------------------------------------------------------------------------------
def test_several_results(random):
    @op(KERNEL, types="ff->ff")
    def mixed(a, b, *, factor):
        """b squared times a factor, and the product of the columns a and b."""

    mixed.infer(lambda a, b, factor: (b, a))

    @mixed.kernel("cpu")
    def _(y, z, a, b, *, factor):
        y[...] = b * b * factor
        z[...] = a * b

    @mixed.vjp
    def _(g, y, a, b, *, factor):
        (gy, gz), (_, ab) = g, y
        zero = 0 * a
        gy, gz = zero if gy is None else gy, zero if gz is None else gz
        assert ab.shape == a.shape
        return gz * b, gy * 2 * b * factor + gz * a

    check_derivatives(lambda a, b: mixed(a, b, factor=3.0), random.normal(size=(3, 1)), random.normal(size=(3, 1)))
    check_derivatives(lambda a, b: mixed(a, b * a, factor=3.0)[1], random.normal(size=3), random.normal(size=3))
    y, z = mixed(dlarray([1.0]), dlarray([2.0]), factor=2)
    assert (y.tolist(), z.tolist()) == ([8.0], [2.0])


def test_a_kernel_is_not_called_for_nothing():
    @op(KERNEL)
    def never(x):
        """x."""

    @never.kernel("cpu")
    def _(y, x):
        raise AssertionError("called")

    assert never(dlarray(np.zeros((0, 2)))).shape == (0, 2)


def test_a_notebook_may_run_its_cell_again():
    def declare(factor):
        def again(x):
            """x times a number."""
            return x * factor

        return op(KERNEL)(again)

    assert [declare(k)(dlarray([1.0])).tolist() for k in (2, 3)] == [[2.0], [3.0]]


# what can go wrong --------------------------------------------------------------------------------------------------
def declared(*args, arity=1, body=None, name="mine", **facts):
    names = {}
    parameters = ", ".join("abc"[:arity])
    exec(f"def {name}({parameters}):\n    '''Mine.'''\n    {f'return {body}' if body else ''}", {"np": np}, names)
    names[name].__module__ = __name__
    return op(*args, **facts)(names[name])


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: op(lambda x: x), OptionError, "@op(MAP, text=...) or @op(KERNEL)"),
        (lambda: declared(MAP, Text="{0}"), OptionError, "Did you mean text?"),
        (lambda: declared(REDUCE), OptionError, "Ops of yours are MAP or KERNEL"),
        (lambda: declared(VIEW), OptionError, "Ops of yours are MAP or KERNEL"),
        (lambda: declared(KERNEL, text="{0}"), OptionError, "@op(MAP, text=...)"),
        (lambda: declared(MAP), OptionError, "either a text or a body"),
        (lambda: declared(MAP, text="{0}", body="a"), OptionError, "either a text or a body"),
        (lambda: declared(MAP, text="{0} ** 2"), OptionError, "no ** and no not"),
        (lambda: declared(MAP, text="bessel({0})"), OptionError, "cannot be read"),
        (lambda: declared(MAP, text="not {0}"), OptionError, "cannot be read"),
        (lambda: declared(MAP, text="{0} + {1}"), ShapeError, "has 1 operands, its text uses [0, 1]"),
        (lambda: declared(MAP, text="{0}", arity=2), ShapeError, "has 2 operands, its text uses [0]"),
        (lambda: declared(KERNEL, types="x->f"), OptionError, "types are letters"),
        (lambda: declared(KERNEL, name="exp"), MinidlError, "exp is declared twice"),
        (lambda: declared(KERNEL).kernel("tpu"), OptionError, '"cpu", "gpu"'),
        (lambda: declared(KERNEL).kernel("cpu")(3), DTypeError, "a function is wanted; got int"),
        (lambda: declared(MAP, text="{0}").kernel("cpu"), MinidlError, "fused with its neighbours"),
        (lambda: OPS["crop"].kernel("gpu"), MinidlError, "a VIEW op"),
        (lambda: declared(KERNEL, body="a")(dlarray(1.0), of=[1]), DTypeError, "of is a list. Arrays are given by pos"),
        (lambda: declared(KERNEL)(2.0), DTypeError, "Wrap one of them: dlarray(x)"),
        (lambda: declared(KERNEL, body="a + np.ones((3, 1))")(dlarray([1.0, 2.0])), ShapeError, "Declare @mine.infer"),
        (lambda: declared(KERNEL, body="(a, 3)")(dlarray([1.0, 2.0])), ShapeError, "its body gives double[2], int"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(explained, call, error, said):
    explained(call, error, said)


def kernel_that(function, x=(1.0, 2.0)):
    mine = declared(KERNEL)
    mine.kernel("cpu")(function)
    return lambda: mine(dlarray(np.array(x)))


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (lambda y, x: 2 * x, DTypeError, "its cpu kernel returned ndarray"),
        (lambda y, x: None, MinidlError, "left 2 of the 2 elements of output 0"),
        (lambda y, x: y.__setitem__(0, 1), MinidlError, "left 1 of the 2 elements"),
        (lambda y, x: np.add(y, x, out=y).fill and None, MinidlError, "or added to what was there"),
        (lambda y, x: (y.fill(1), x.fill(0))[0], MinidlError, "wrote to its inputs"),
    ],
)
def test_mistakes_in_a_kernel_are_explained(explained, function, error, said):
    explained(kernel_that(function), error, said)


def test_a_kernel_may_give_nan():
    assert np.isnan(kernel_that(lambda y, x: y.fill(np.nan))()).all()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda g, y, a, b: (g,), "gives 1 gradients for 2 inputs"),
        (lambda g, y, a, b: (g, sum(g, 0)), "gives 1×1 for input 1, which is 2×1"),
    ],
)
def test_wrong_gradients_are_explained(explained, rule, said):
    mine = declared(KERNEL, body="a * b", arity=2)
    mine.vjp(rule)
    X = dlarray([1.0, 2.0])
    explained(lambda: dlfeval(lambda x, y: dlgradient(sum(mine(x, y), "all"), x, y), X, X), ShapeError, said)


def test_no_derivative_is_explained(explained):
    mine = declared(KERNEL)
    mine.kernel("cpu")(lambda y, x: y.__setitem__(..., x))
    explained(lambda: dlfeval(lambda x: dlgradient(sum(mine(x)), x), dlarray([1.0])), TraceError, "@mine.vjp")


def test_infer_gives_specs(explained):
    mine = declared(KERNEL, body="a")
    mine.infer(lambda a: a.shape)
    explained(lambda: mine(dlarray([1.0])), DTypeError, "infer gives a Spec")
