"""dlfeval and dlgradient: derivatives of every order, trees, MATLAB's errors with the remedy, tapes always closed."""

from __future__ import annotations

import threading
from collections import deque, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest

import minidl as m
from minidl import (
    DLArray,
    DTypeError,
    OptionError,
    TraceError,
    dlaccelerate,
    dlarray,
    dlfeval,
    dlgradient,
    exp,
    sgdmupdate,
    struct,
    tanh,
)
from minidl.core.tape import Tape, open_tapes, opened

X = np.array([[1.0, -2.0, 0.5]])


def gradient(function, *args, **options):
    """Gradients of sum(function(args)) by each of the args."""
    return dlfeval(lambda *args: dlgradient(function(*args).sum("all"), *args, **options), *args)


# first derivatives ------------------------------------------------------------------------------------------------
def test_value_and_gradient():
    y, g = dlfeval(lambda x: (y := (x * x * x).sum("all"), dlgradient(y, x)), dlarray(X))
    assert isinstance(g, DLArray) and y.item() == np.sum(X**3)
    np.testing.assert_allclose(g, 3 * X**2)


def test_several_arrays_give_a_tuple():
    found = gradient(lambda a, b: a * b, dlarray(X), dlarray(2 * X))
    assert isinstance(found, tuple) and np.array_equal(found[0], 2 * X) and np.array_equal(found[1], X)


def test_gradient_has_size_labels_and_type_of_its_array():
    a, b = dlarray(np.ones((2, 3), "f"), "CB"), dlarray(np.ones((2, 1), "f"), "CT")
    ga, gb = gradient(lambda a, b: a * b, a, b)
    assert (ga.dims(), ga.shape, ga.dtype) == ("CB", (2, 3), "float32")
    assert (gb.dims(), gb.shape) == ("CT", (2, 1)) and np.array_equal(gb, [[3], [3]])
    ga, gb = gradient(lambda a, b: a * b, a, dlarray(np.ones((2, 1))))
    assert ga.dtype == "float32" and gb.dtype == "float64" and gb.dims() == ""


def test_an_array_that_plays_no_part_has_gradient_zero():
    unused = dlarray(np.ones((2, 4), "f"), "CB")
    _, g = gradient(lambda x, unused: x, dlarray(X), unused)
    assert g.shape == (2, 4) and g.dims() == "CB" and g.dtype == "float32" and not np.any(g.extractdata())


def test_an_array_used_twice():
    np.testing.assert_allclose(gradient(lambda x: x * x + x, dlarray(X)), 2 * X + 1)


def test_the_same_array_given_twice_counts_as_two_variables():
    x = dlarray(X)
    a, b = gradient(lambda a, b: a * b * b, x, x)
    np.testing.assert_allclose(a, X**2)
    np.testing.assert_allclose(b, 2 * X**2)


def test_the_same_array_in_both_places_of_an_op_with_a_body():
    np.testing.assert_allclose(gradient(lambda x: sgdmupdate(x, x, x, 0.25, 0.5)[0], dlarray(X)), np.full_like(X, 1.25))


def test_gradient_by_an_intermediate_value():
    def fun(x):
        h = x * x
        return dlgradient((h * h).sum("all"), h)

    np.testing.assert_allclose(dlfeval(fun, dlarray(X)), 2 * X**2)


def test_gradient_of_the_variable_itself():
    assert dlfeval(lambda x: dlgradient(x, x), dlarray(3.0)).item() == 1
    assert dlfeval(lambda x: dlgradient(x, x), dlarray(np.ones((1, 1)), "CB")).dims() == "CB"


def test_a_size_of_one_in_any_form_is_a_scalar():
    for shape in [(), (1,), (1, 1), (1, 1, 1)]:
        assert dlfeval(lambda x: dlgradient(x * 2, x), dlarray(np.ones(shape))).shape == shape


def test_numbers_and_arrays_from_outside_are_constants():
    constant = dlarray(2 * X)
    np.testing.assert_allclose(gradient(lambda x: 3 * x * constant * X, dlarray(X)), 6 * X**2)


def test_no_gradient_through_extractdata():
    np.testing.assert_allclose(gradient(lambda x: x * x.extractdata(), dlarray(X)), X)


def test_a_long_chain_needs_no_deep_recursion():
    def chain(x):
        for _ in range(3000):
            x = x * 1.0
        return x

    np.testing.assert_allclose(gradient(chain, dlarray(X)), np.ones_like(X))


def test_assignment_is_differentiable_and_stays_inside():
    x, v = dlarray(X), dlarray(5.0)

    def fun(x, v):
        start = x.copy()
        x[0, 1] = v * v
        return dlgradient((x * x).sum("all"), start, v)

    gx, gv = dlfeval(fun, x, v)
    np.testing.assert_allclose(gx, [[2, 0, 1]])
    assert gv.item() == 4 * 5**3 and np.array_equal(x, X)


def test_assignment_does_not_change_what_was_computed_before():
    def fun(x):
        y = x * x
        z = +y  # a name of its own; z = y would be the same array under two names, as everywhere in Python
        y[0, 0] = 0.0
        return y + z * x

    np.testing.assert_allclose(gradient(fun, dlarray(X)), [[3 * 1, -4 + 3 * 4, 1 + 3 * 0.25]])


@pytest.mark.parametrize("function", [
    lambda x: +x, lambda x: x**1, lambda x: x[...], lambda x: x[:], m.real, m.gather, m.double, m.stripdims, m.squeeze,
    lambda x: x.astype("double"), lambda x: m.permute(x, 0, 1), lambda x: m.rot90(x, 0), lambda x: m.reshape(x, 2, 2),
    lambda x: m.repmat(x, 1), lambda x: m.circshift(x, 0), lambda x: m.cat(0, x), np.positive, np.squeeze, m.dlarray,
    lambda x: m.where(True, x, 0), lambda x: x.copy(), lambda x: m.shiftdim(x, 0), lambda x: np.transpose(x, (0, 1)),
])  # fmt: skip
def test_assignment_to_a_result_leaves_the_argument_alone(function):
    x = dlarray(np.ones((2, 2)))
    y = function(x)
    y[0, 0] = 5.0
    assert x[0, 0].item() == 1 and y[0, 0].item() == 5


# trees ------------------------------------------------------------------------------------------------------------
Pair = namedtuple("Pair", ["w", "b"])


@dataclass
class Layer:
    w: object
    b: object


@pytest.mark.parametrize("make, get", [
    (lambda w, b: struct(w=w, b=b), lambda t: (t.w, t["b"])),
    (lambda w, b: {"w": w, "b": b}, lambda t: (t["w"], t["b"])),
    (lambda w, b: [w, b], tuple),
    (lambda w, b: (w, b), tuple),
    (Pair, tuple),
    (Layer, lambda t: (t.w, t.b)),
    (lambda w, b: {"layer": [struct(deep=(w, None))], "b": Layer(b, [])}, lambda t: (t["layer"][0].deep[0], t["b"].w)),
], ids=["struct", "dict", "list", "tuple", "namedtuple", "dataclass", "nested"])  # fmt: skip
def test_trees(make, get):
    tree = make(dlarray(2 * X), dlarray(X))

    def fun(tree, x):
        w, b = get(tree)
        return dlgradient((w * x + b).sum("all"), tree, x)

    g, gx = dlfeval(fun, tree, dlarray(X))
    assert type(g) is type(tree)
    gw, gb = get(g)
    assert np.array_equal(gw, X) and np.array_equal(gb, np.ones_like(X)) and np.array_equal(gx, 2 * X)


def test_a_list_of_arrays_gives_a_list():
    def fun(a, b):
        return dlgradient((a * b).sum("all"), [a, b])

    found = dlfeval(fun, dlarray(X), dlarray(X))
    assert isinstance(found, list) and len(found) == 2


def test_arguments_other_than_arrays_pass_through():
    marker = object()
    assert dlfeval(lambda *args, **kw: (args, kw), 1, "a", marker, None, k=[X]) == ((1, "a", marker, None), {"k": [X]})


def test_keyword_arguments_are_traced():
    g = dlfeval(lambda x, scale: dlgradient((x * scale).sum("all"), scale), dlarray(X), scale=dlarray(2.0))
    assert g.item() == pytest.approx(X.sum())


def test_fields_assigned_inside_do_not_reach_the_caller():
    params = struct(layer=struct(w=dlarray(X)))

    def fun(params):
        params.layer.w = params.layer.w * 2
        params.extra = 1
        return params

    inside = dlfeval(fun, params)
    assert np.array_equal(params.layer.w, X) and "extra" not in params and np.array_equal(inside.layer.w, 2 * X)


# higher derivatives -----------------------------------------------------------------------------------------------
def test_orders_one_to_three():
    def fun(x):
        y = (x * x * x * x).sum("all")
        g1 = dlgradient(y, x, EnableHigherDerivatives=True)
        g2 = dlgradient(g1.sum("all"), x, EnableHigherDerivatives=True)
        return g1, g2, dlgradient(g2.sum("all"), x)

    for order, (found, factor) in enumerate(zip(dlfeval(fun, dlarray(X)), (4, 12, 24)), 1):
        np.testing.assert_allclose(found, factor * X ** (4 - order))


def test_third_derivative_of_tanh():
    def fun(x):
        g = tanh(x)
        for _ in range(2):
            g = dlgradient(g.sum("all"), x, EnableHigherDerivatives=True)
        return dlgradient(g.sum("all"), x)

    t = np.tanh(X)
    np.testing.assert_allclose(dlfeval(fun, dlarray(X)), -2 * (1 - t**2) * (1 - 3 * t**2), rtol=1e-12)


def test_gradient_penalty():
    def fun(w, x):
        y = (exp(w * x)).sum("all")
        gx = dlgradient(y, x, EnableHigherDerivatives=True)
        return dlgradient((gx * gx).sum("all"), w)

    w, x = 0.5, X
    # gx = w e^(wx); d/dw gx^2 = 2 w e^(2wx) + 2 w^2 x e^(2wx)
    expected = np.sum(2 * w * np.exp(2 * w * x) * (1 + w * x))
    assert dlfeval(fun, dlarray(w), dlarray(x)).item() == pytest.approx(expected, rel=1e-12)


def test_without_higher_derivatives_the_gradient_is_a_constant():
    def fun(x):
        g = dlgradient((x * x).sum("all"), x, RetainData=True)
        return dlgradient((g * x).sum("all"), x)

    np.testing.assert_allclose(dlfeval(fun, dlarray(X)), 2 * X)
    with pytest.raises(TraceError, match="not traced"):
        dlfeval(lambda x: dlgradient(dlgradient(x * x, x) * 1.0, x), dlarray(3.0))


def test_higher_derivatives_through_an_op_with_a_body():
    def fun(x):
        y = sgdmupdate(x, x * x * x, None, 1.0)[0]  # x - x^3
        g = dlgradient(y.sum("all"), x, EnableHigherDerivatives=True)
        return g, dlgradient(g.sum("all"), x)

    g, h = dlfeval(fun, dlarray(X))
    np.testing.assert_allclose(g, 1 - 3 * X**2)
    np.testing.assert_allclose(h, -6 * X)


# the trace and its release ----------------------------------------------------------------------------------------
def test_retained_trace_is_read_again():
    def fun(x):
        h = x * x
        first = dlgradient(h.sum("all"), x, RetainData=True)
        return first, dlgradient((h * h).sum("all"), x), None

    first, second, _ = dlfeval(fun, dlarray(X))
    np.testing.assert_allclose(first, 2 * X)
    np.testing.assert_allclose(second, 4 * X**3)


def test_released_trace_of_the_same_value():
    def fun(x):
        y = (x * x).sum("all")
        dlgradient(y, x)
        return dlgradient(y, x)

    with pytest.raises(TraceError, match="RetainData=True"):
        dlfeval(fun, dlarray(X))


def test_released_trace_below_another_value_is_no_silent_zero():
    def fun(x):
        h = x * x
        dlgradient(h.sum("all"), x)
        return dlgradient((h * 3).sum("all"), x)

    with pytest.raises(TraceError, match="RetainData=True"):
        dlfeval(fun, dlarray(X))


def test_separate_computations_do_not_disturb_each_other():
    def fun(x):
        return dlgradient((x * x).sum("all"), x), dlgradient((x * 3).sum("all"), x)

    first, second = dlfeval(fun, dlarray(X))
    assert np.array_equal(first, 2 * X) and np.array_equal(second, np.full_like(X, 3))


def test_nothing_stays_traced():
    y = dlfeval(lambda x: x * x, dlarray(3.0))
    with pytest.raises(TraceError, match="not traced"):
        dlfeval(lambda x: dlgradient(y, x), dlarray(3.0))


# nesting, threads, exceptions -------------------------------------------------------------------------------------
def test_nested_dlfeval():
    def inner(x, a):
        return dlgradient((a * x * x).sum("all"), x)  # 2 a x

    def outer(x, a):
        g = dlfeval(inner, x, a)
        return dlgradient((g * x).sum("all"), x, a)  # of 2 a x^2: 4 a x and 2 sum(x^2)

    gx, ga = dlfeval(outer, dlarray(X), dlarray(3.0))
    np.testing.assert_allclose(gx, 12 * X)
    assert ga.item() == pytest.approx(2 * np.sum(X**2))


def test_inner_variables_are_not_the_outer_ones():
    def outer(x):
        y = x * x
        return dlfeval(lambda inner: dlgradient((inner * y).sum("all"), inner), x)  # y is a constant in there

    np.testing.assert_allclose(dlfeval(outer, dlarray(X)), X**2)


def test_outer_gradient_inside_an_inner_evaluation():
    def outer(x):
        y = (x * x).sum("all")
        return dlfeval(lambda z: dlgradient(y, x), dlarray(1.0))

    np.testing.assert_allclose(dlfeval(outer, dlarray(X)), 2 * X)


def test_an_exception_closes_every_tape():
    def fun(x):
        return dlfeval(lambda x: 1 / 0, x * x)

    with pytest.raises(ZeroDivisionError):
        dlfeval(fun, dlarray(X))
    assert open_tapes() == []
    np.testing.assert_allclose(gradient(lambda x: x * x, dlarray(X)), 2 * X)


def test_a_failed_gradient_can_be_asked_for_again():
    def fun(x):
        y = x * x
        with pytest.raises(TraceError, match="non-scalar"):
            dlgradient(y, x)
        with pytest.raises(TraceError, match="not traced"):
            dlgradient(y.sum("all"), dlarray(1.0))
        return dlgradient(y.sum("all"), x)

    np.testing.assert_allclose(dlfeval(fun, dlarray(X)), 2 * X)


def test_threads_have_their_own_tapes():
    barrier = threading.Barrier(2, timeout=20)
    found = {}

    def fun(x, factor):
        barrier.wait()
        for _ in range(50):
            y = (factor * x * x).sum("all")
            g = dlgradient(y, x)
        barrier.wait()
        return g, len(open_tapes())

    def work(factor):
        found[factor] = dlfeval(fun, dlarray(X), factor)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in (1.0, 5.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for factor in (1.0, 5.0):
        g, depth = found[factor]
        assert depth == 1
        np.testing.assert_allclose(g, 2 * factor * X)


def test_a_recording_is_not_a_gradient_tape():
    with opened(Tape(everything=True)) as recording:
        np.testing.assert_allclose(gradient(lambda x: x * x, dlarray(X)), 2 * X)
    assert {"alias", "times", "reduce_sum"} <= {call.op.name for call in recording.calls}
    x = dlarray(3.0)
    with opened(Tape(everything=True)), pytest.raises(TraceError, match="not traced"):
        dlgradient(x * x, x)


# errors -----------------------------------------------------------------------------------------------------------
ERRORS = {
    "non-scalar": (TraceError, r"non-scalar \(1×3\).*sum\(y, 'all'\)", lambda x: dlgradient(x * x, x)),
    "plain number": (TraceError, "is a float", lambda x: dlgradient(1.0, x)),
    "plain array": (TraceError, "is a ndarray", lambda x: dlgradient(np.ones(1), x)),
    "logical": (TraceError, "logical", lambda x: dlgradient((x.sum("all") > 0), x)),
    "extracted": (TraceError, "not traced", lambda x: dlgradient(dlarray((x * x).sum("all").extractdata()), x)),
    "constant": (TraceError, "not traced", lambda x: dlgradient(dlarray(1.0), x)),
    "nothing to differentiate by": (TraceError, "at least one", lambda x: dlgradient(x.sum("all"))),
    "by a number": (TraceError, "float, not a dlarray", lambda x: dlgradient(x.sum("all"), 1.0)),
    "by a plain array": (TraceError, "ndarray, not a dlarray", lambda x: dlgradient(x.sum("all"), X)),
    "by an untraced dlarray": (TraceError, "argument", lambda x: dlgradient(x.sum("all"), dlarray(X))),
    "by a tree with an untraced one": (TraceError, "argument", lambda x: dlgradient(x.sum("all"), [x, dlarray(X)])),
    "by a tree with text": (TraceError, "str, not a dlarray", lambda x: dlgradient(x.sum("all"), {"a": x, "n": "t"})),
    "lower case option": (OptionError, "RetainData", lambda x: dlgradient(x.sum("all"), x, retaindata=True)),
    "misspelt option": (OptionError, "EnableHigherDerivatives",
                        lambda x: dlgradient(x.sum("all"), x, EnableHigherDerivative=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    error, pattern, fun = ERRORS[name]
    x = dlarray(X)
    with pytest.raises(error, match=f"(?s)dlgradient.*{pattern}"):
        dlfeval(fun, x)
    assert open_tapes() == [] and np.array_equal(x, X)


def test_outside_of_dlfeval():
    x = dlarray(2.0)
    with pytest.raises(TraceError, match="Use dlgradient inside a function called by dlfeval"):
        dlgradient(x * x, x)


def test_dlfeval_wants_a_function():
    with pytest.raises(DTypeError, match="function"):
        dlfeval(dlarray(X), dlarray(X))


# T3: which variable is not traced, and why --------------------------------------------------------------------------
OUTSIDE = dlarray(2.0)


class Net:
    """A plain class, into which trees do not look."""

    def __init__(self):
        self.W = dlarray(np.ones((2, 2)))


def _by_own_argument(parameters, x):
    return dlgradient(x * parameters.conv1.b, parameters)


def _by_something_made_inside(x):
    w = dlarray(3.0)
    return dlgradient(x * w, w)


def _by_an_element_of_a_list(x):
    states = [x, m.zeros(1, 1, like=x)]
    return dlgradient(x * x, states)


def _by_attributes(net, x):
    return dlgradient(m.sum(net.W * x, "all"), net.W)


def _by_the_first_of(container, x):
    w = container[0]
    return dlgradient(x * w, w)


PARAMETERS = struct(conv1=struct(W=np.ones((2, 2)), b=dlarray(1.0)))
REASONS = {
    "plain array in a struct": ("parameters.conv1.W is of type ndarray, not a dlarray.*Wrap it with dlarray",
                                _by_own_argument, (PARAMETERS, dlarray(1.0))),
    "made inside": (r"w is not traced.*made inside", _by_something_made_inside, (dlarray(1.0),)),
    "made inside, in a list": (r"states\[1\] is not traced.*made inside", _by_an_element_of_a_list,
                               (dlarray([[1.0]]),)),
    "attribute": ("net.W is not traced.*object of type Net.*dataclass", _by_attributes, (Net(), dlarray(1.0))),
    "an element of a deque": ("w is not traced.*object of type deque", lambda d, x: _by_the_first_of(d, x),
                              (deque([dlarray(2.0)]), dlarray(1.0))),
    "an element of an array": ("w is not traced.*object of type ndarray", lambda d, x: _by_the_first_of(d, x),
                               (np.array([None, dlarray(2.0)], object)[1:], dlarray(1.0))),
    "a field of a mapping": ("w is not traced.*object of type mappingproxy",
                             lambda d, x: _by_the_first_of(list(d.values()), x),
                             (MappingProxyType({"w": dlarray(2.0)}), dlarray(1.0))),
    "the object": ("net is of type Net, not a dlarray.*dataclass", lambda net, x: dlgradient(x * x, net),
                   (Net(), dlarray(1.0))),
    "global": ("OUTSIDE is not traced.*not among the arguments of dlfeval.*Pass it",
               lambda x: dlgradient(x * OUTSIDE, OUTSIDE), (dlarray(1.0),)),
    "the argument from outside": ("OUTSIDE is not traced.*the function's own argument",
                                  lambda x: dlgradient(x * OUTSIDE, OUTSIDE), (OUTSIDE,)),
    "extracted x": ("ndarray, not a dlarray.*leave extractdata out",
                    lambda x: dlgradient(x * x, m.extractdata(x)), (dlarray(1.0),)),
    "a deque": ("of type deque, not a dlarray.*struct, dict", lambda x: dlgradient(x * x, deque([x])), (dlarray(1.0),)),
    "another dlfeval": ("x is not traced.*another dlfeval",
                        lambda x: dlfeval(lambda z: dlgradient(z * x, x), dlarray(2.0)), (dlarray(1.0),)),
    "y of nothing traced": ("depends on no dlarray among the arguments", lambda x: dlgradient(OUTSIDE * 2, x),
                            (dlarray(1.0),)),
    "y of a gradient": ("EnableHigherDerivatives=True", lambda x: dlgradient(dlgradient(x * x, x), x), (dlarray(1.0),)),
    "y from before": ("was there before dlfeval", lambda x: dlgradient(OUTSIDE, x), (dlarray(1.0),)),
    "y extracted": ("a float64, not a dlarray.*extractdata", lambda x: dlgradient(m.extractdata(x) * 2, x),
                    (dlarray(1.0),)),
    "no dlarray given": ("no dlarray among the arguments", lambda net: dlgradient(m.sum(net.W, "all"), net.W),
                         (Net(),)),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_T3_what_is_not_traced_is_named_with_the_reason(name):
    pattern, fun, args = REASONS[name]
    for run in (fun, dlaccelerate(fun)):
        with pytest.raises(TraceError, match=f"(?s){pattern}") as found:
            dlfeval(run, *args)
        assert "inside a function called by dlfeval" not in str(found.value)
