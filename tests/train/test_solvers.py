"""adamupdate, sgdmupdate, rmspropupdate, dlupdate: formulas in float64, trees, state, types, errors, PyTorch."""

from __future__ import annotations

from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from minidl import (
    DLArray,
    DTypeError,
    LabelError,
    OptionError,
    ShapeError,
    adamupdate,
    dlaccelerate,
    dlarray,
    dlfeval,
    dlgradient,
    dlupdate,
    rmspropupdate,
    sgdmupdate,
    struct,
)
from minidl.core.tape import Tape, opened
from minidl.core.tree import flatten, unflatten
from minidl.train import solvers

SIZES = [(3, 3, 1, 4), (4, 1), (10, 7), (1,), (), (0, 3)]


def mapped(function, tree):
    leaves, structure = flatten(tree)
    return unflatten(structure, map(function, leaves))


# the formulas, written once more in plain NumPy -------------------------------------------------------------------
def adam(p, g, m, v, t, rate=0.001, b1=0.9, b2=0.999, eps=1e-8):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    return p - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps), m, v


def sgdm(p, g, vel, rate=0.01, momentum=0.9):
    vel = momentum * vel - rate * g
    return p + vel, vel


def rmsprop(p, g, v, rate=0.001, decay=0.9, eps=1e-8):
    v = decay * v + (1 - decay) * g**2
    return p - rate * g / (np.sqrt(v) + eps), v


STEPS = {
    "adam": (2, lambda p, g, s, t: adamupdate(p, g, *s, t), lambda p, g, s, t: adam(p, g, *s, t)),
    "adam with options": (
        2,
        lambda p, g, s, t: adamupdate(p, g, *s, t, 0.1, gradDecay=0.5, sqGradDecay=0.7, epsilon=1e-3),
        lambda p, g, s, t: adam(p, g, *s, t, 0.1, 0.5, 0.7, 1e-3),
    ),
    "adam without memory": (
        2,
        lambda p, g, s, t: adamupdate(p, g, *s, t, 0.1, 0, 0),
        lambda p, g, s, t: adam(p, g, *s, t, 0.1, 0.0, 0.0),
    ),
    "adam, iteration traced": (
        2,
        lambda p, g, s, t: adamupdate(p, g, *s, dlarray(float(t)), dlarray(0.01)),
        lambda p, g, s, t: adam(p, g, *s, t, 0.01),
    ),
    "sgdm": (1, lambda p, g, s, t: sgdmupdate(p, g, *s), lambda p, g, s, t: sgdm(p, g, *s)),
    "sgdm with options": (
        1,
        lambda p, g, s, t: sgdmupdate(p, g, *s, learnRate=dlarray(0.1), momentum=0),
        lambda p, g, s, t: sgdm(p, g, *s, 0.1, 0.0),
    ),
    "rmsprop": (1, lambda p, g, s, t: rmspropupdate(p, g, *s), lambda p, g, s, t: rmsprop(p, g, *s)),
    "rmsprop with options": (
        1,
        lambda p, g, s, t: rmspropupdate(p, g, *s, 0.1, 0.5, 1e-3),
        lambda p, g, s, t: rmsprop(p, g, *s, 0.1, 0.5, 1e-3),
    ),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_formula(name, dtype, random):
    count, update, formula = STEPS[name]
    p0 = [random.normal(size=s).astype(dtype) for s in SIZES]
    params, state = [dlarray(x) for x in p0], [None] * count
    expected = [[x.astype("float64"), *[np.zeros(x.shape)] * count] for x in p0]
    for t in range(1, 6):
        g = [random.normal(size=s).astype(dtype) for s in SIZES]
        params, *state = update(params, [dlarray(x) for x in g], state, t)
        expected = [list(formula(p, x, s, t)) for (p, *s), x in zip(expected, g)]
        for k, tree in enumerate([params, *state]):
            for y, row in zip(tree, expected):
                assert isinstance(y, DLArray) and y.dtype == dtype and y.shape == row[k].shape
                rtol = 1e-12 if dtype == "float64" else 3e-5
                np.testing.assert_allclose(y.extractdata(), row[k], rtol=rtol, atol=rtol / 10)


def test_first_step_of_adam_by_hand():
    p, _, _ = adamupdate(dlarray(1.0), dlarray(1.0), [], [], 1)
    assert p.item() == pytest.approx(1 - 0.001 * (np.sqrt(0.001) / 0.1) * 0.1 / (np.sqrt(0.001) + 1e-8), rel=1e-12)


def test_late_iterations_keep_precision_in_single():
    one = dlarray(np.ones(1, "f"))
    for t in (1, 2, 1000, 10**6, 10**12):
        exact, _, _ = adamupdate(np.ones(1), np.ones(1), None, None, t)
        for given in (t, dlarray(float(t)), dlarray(np.float32(t))):
            p, _, _ = adamupdate(one, one, None, None, given)
            assert float(p) == pytest.approx(exact[0], abs=1e-7)


@dataclass
class Layer:
    Weights: Any
    Bias: Any


class Pair(NamedTuple):
    a: Any
    b: Any


def nested(x: Any) -> Any:
    """A tree with every kind of container around leaves made by x()."""
    return struct(conv=struct(W=x(), b=x()), parts=[x(), (x(), Pair(x(), None))], fc=Layer(x(), {"b": x()}))


@pytest.mark.parametrize("update", [
    lambda p, g: adamupdate(p, g, None, [], 1),
    lambda p, g: sgdmupdate(p, g, []),
    lambda p, g: rmspropupdate(p, g, None),
])  # fmt: skip
def test_containers_come_back(update, random):
    params, grad = (nested(lambda: dlarray(random.normal(size=(2, 3)))) for _ in range(2))
    one, *_ = update(params.conv.W, grad.conv.W)
    for tree in update(params, grad):
        assert flatten(tree)[1] == flatten(params)[1]
        assert tree.parts is not params.parts
    assert np.array_equal(update(params, grad)[0].conv.W, one)


def test_a_dict_of_gradients_fits_a_struct_of_parameters():
    p, vel = sgdmupdate(struct(w=dlarray(1.0)), {"w": dlarray(1.0)}, None)
    assert isinstance(p, struct) and isinstance(vel, struct) and p.w.item() == 0.99


def test_trees_that_are_nearly_alike_are_told_apart():
    """Trees of a known form are read by straight code: it must see every difference."""
    x = dlarray(np.ones(2))
    for _ in range(2):  # unknown, then known
        (p, vel) = sgdmupdate({"a": x, "b": [x, None]}, {"a": x, "b": [x, None]}, {"a": x, "b": (x, None)})
        assert flatten(p)[1] == flatten(vel)[1] == flatten({"a": x, "b": [x, None]})[1]
        assert type(sgdmupdate(struct(a=x, b=(x,)), {"a": x, "b": [x]}, None)[0].b) is tuple
        assert list(sgdmupdate({1: x}, {1: x}, None)[0]) == [1]
        assert [*map(type, sgdmupdate({True: x}, {True: x}, None)[0])] == [bool]
        wrong = [{"a": x}, {"b": [x, None], "a": x}, {"a": x, "b": [x, x]}, {"a": x, "b": [x]}, {"a": x, "b": x}, x,
                 {"a": [x], "b": [x, None]}, {"a": x, "b": [x, None], "c": None}, [x, [x, None]]]  # fmt: skip
        for tree in wrong:
            with pytest.raises(ShapeError, match="containers differ"):
                sgdmupdate({"a": x, "b": [x, None]}, tree, None)
        with pytest.raises(DTypeError, match="str"):
            sgdmupdate({"a": x, "b": [x, None]}, {"a": x, "b": ["text", None]}, None)
    assert sgdmupdate([], [], None) == ([], [])


def test_many_forms_of_trees(random):
    for n in [*range(30), *range(30)]:
        tree = {f"layer{i}": {"W": dlarray(random.normal(size=i))} for i in range(n)}
        p, vel = sgdmupdate(tree, tree, tree, learnRate=0)
        assert list(p) == list(vel) == list(tree)
        for name, x in tree.items():
            np.testing.assert_allclose(vel[name]["W"], 0.9 * x["W"].extractdata())
    assert len(solvers._forms) <= solvers._MOST_FORMS


def test_plain_arrays_stay_plain(random):
    x, g = random.normal(size=(2, 4, 3))
    p, m, v = adamupdate({"w": x, "n": 1.0, "s": np.float32(2)}, {"w": g, "n": 0.5, "s": np.float32(1)}, None, None, 1)
    assert type(p["w"]) is np.ndarray and type(m["n"]) is float and type(v["s"]) is np.float32
    np.testing.assert_allclose(p["w"], adam(x, g, 0, 0, 1)[0])
    mixed, vel = sgdmupdate(x, dlarray(g), None)
    assert isinstance(mixed, DLArray) and isinstance(vel, DLArray)


def test_labels_of_the_parameter_stay():
    for p, g in [("CB", "CB"), ("CB", None), (None, "CB"), (None, None)]:
        x, m, v = adamupdate(dlarray(np.ones((2, 3)), p), dlarray(np.ones((2, 3)), g), None, None, 1)
        assert x.dims() == m.dims() == v.dims() == (p or "")


def test_nothing_is_changed():
    params = struct(w=np.ones(3), b=dlarray(np.ones(2)))
    kept = params.w.copy(), params.b.extractdata().copy(), params.b._value
    adamupdate(params, params.copy(), params.copy(), params.copy(), 3)
    assert np.array_equal(params.w, kept[0]) and np.array_equal(params.b, kept[1]) and params.b._value is kept[2]


def test_the_rate_is_computed_once_and_the_state_is_traced():
    params = [dlarray(np.ones((2, 2), "f")), dlarray(np.ones(3, "f")), dlarray(np.ones(3))]
    with opened(Tape(everything=True)) as tape:
        adamupdate(params, params, None, None, dlarray(1.0))
    names = [call.op.name for call in tape.calls]
    assert names.count("expm1") == 2 and names.count("adam") == 3 and names.count("full") == 3
    assert names.count("cast") == 1  # the rate, from double to single
    assert not tape.reads


def test_a_step_differentiates():
    def loss(x, rate):
        p, _ = sgdmupdate(x, x * x, None, rate)
        y = (p * p).sum("all")
        return dlgradient(y, x, rate)

    x = np.array([1.0, -2.0])
    dx, drate = dlfeval(loss, dlarray(x), dlarray(0.1))
    np.testing.assert_allclose(dx, 2 * (x - 0.1 * x**2) * (1 - 0.2 * x))
    np.testing.assert_allclose(drate, np.sum(2 * (x - 0.1 * x**2) * -(x**2)))



def test_accelerated_one_trace_serves_every_iteration(random):
    params = struct(fc=struct(W=dlarray(random.normal(size=(4, 3)).astype("f")), b=dlarray(np.zeros((4, 1), "f"))))
    for mode, rtol in ("exact", 0), ("fast", 1e-5):
        update = dlaccelerate(adamupdate, Numerics=mode)
        state = plain = (params, *(mapped(lambda x: x * 0, params) for _ in range(2)))
        for t in range(1, 21):
            grad = mapped(lambda x: dlarray(random.normal(size=x.shape).astype("f")), params)
            iteration, rate = dlarray(float(t)), dlarray(0.01 / t)
            state = update(state[0], grad, *state[1:], iteration, rate)
            plain = adamupdate(plain[0], grad, *plain[1:], iteration, rate)
        assert update.HitRate == 95.0
        for a, b in zip(flatten(state)[0], flatten(plain)[0]):
            np.testing.assert_allclose(a.extractdata(), b.extractdata(), rtol=rtol, atol=rtol / 10)


# dlupdate ---------------------------------------------------------------------------------------------------------
def test_dlupdate():
    grads, params = (nested(lambda k=k: dlarray([float(k)])) for k in (1, 2))
    found = dlupdate(lambda g, p: g + 0.5 * p, grads, params)
    assert flatten(found)[1] == flatten(grads)[1] and found.fc.Bias["b"].item() == 2
    big, small = dlupdate(lambda g: (g * 10, g / 10, "left out"), grads, nargout=2)
    assert big.conv.W.item() == 10 and small.parts[1][1].a.item() == 0.1
    (only,) = flatten(dlupdate(lambda x: x.shape, dlarray([1.0])))[0]
    assert only == 1


# errors -----------------------------------------------------------------------------------------------------------
W, B = dlarray(np.ones((2, 3), "f")), dlarray(np.ones((2, 1), "f"))
PARAMS, STATE = struct(fc=struct(W=W, b=B)), struct(fc=struct(W=W, b=B))
LOW = struct(fc=struct(W=W))
WRONG = {
    "lacks a field": (ShapeError, "'b'", lambda u: u(PARAMS, LOW)),
    "another order": (ShapeError, "order", lambda u: u(PARAMS, struct(fc=struct(b=B, W=W)))),
    "another container": (ShapeError, "struct", lambda u: u(PARAMS, [W, B])),
    "an array for a tree": (ShapeError, "DLArray", lambda u: u(PARAMS, W)),
    "a tree for an array": (ShapeError, "DLArray", lambda u: u(W, PARAMS)),
    "another length": (ShapeError, "2 elements", lambda u: u([W, B], [W])),
    "no gradients": (ShapeError, "dlgradient", lambda u: u(PARAMS, None)),
    "gradient of another size": (ShapeError, "fc.b is 2×3", lambda u: u(PARAMS, struct(fc=struct(W=W, b=W)))),
    "gradient of size 1": (ShapeError, "1×1", lambda u: u(W, dlarray(np.ones((1, 1), "f")))),
    "double gradient": (DTypeError, "double", lambda u: u(W, W.extractdata().astype(float))),
    "logical gradient": (DTypeError, "logical", lambda u: u(W, dlarray(np.ones((2, 3), bool)))),
    "integer parameter": (DTypeError, "int32", lambda u: u(np.ones(2, "i4"), np.ones(2))),
    "text": (DTypeError, "str", lambda u: u({"name": "conv"}, {"name": "conv"})),
    "other labels": (LabelError, "BC", lambda u: u(dlarray(W, "CB"), dlarray(np.ones((2, 3), "f"), "SC"))),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("update", [
    lambda p, g: adamupdate(p, g, None, None, 1), lambda p, g: sgdmupdate(p, g, None),
    lambda p, g: rmspropupdate(p, g, None),
], ids=["adam", "sgdm", "rmsprop"])  # fmt: skip
def test_wrong_trees(name, update):
    error, word, call = WRONG[name]
    with pytest.raises(error, match=word.replace("BC", "SC")):
        call(update)


@pytest.mark.parametrize("t", [0, -1, 1.5, np.nan, np.inf, -np.inf, True, None, "1", 10**400, np.ones(2)], ids=str)
def test_wrong_iteration(t):
    with pytest.raises(OptionError, match="adamupdate: iteration is a positive whole number"):
        adamupdate(PARAMS, PARAMS, None, None, t)


def test_right_iteration():
    one = dlarray(np.ones((1, 1)))
    for t in (1, 1.0, np.int32(1), np.float64(1), np.array(1), dlarray(1.0), one, dlarray(1.0, "B")):
        p, _, _ = adamupdate(W, W, None, None, t)
        assert p.dims() == "" and p.shape == W.shape
        np.testing.assert_allclose(p, np.float32(0.999), rtol=1e-6)


@pytest.mark.parametrize("call, word", [
    (lambda: adamupdate(W, W, None, None, 1, -0.1), "learnRate"),
    (lambda: adamupdate(W, W, None, None, 1, float("nan")), "learnRate"),
    (lambda: adamupdate(W, W, None, None, 1, gradDecay=1), "gradDecay"),
    (lambda: adamupdate(W, W, None, None, 1, gradDecay=-0.5), "gradDecay"),
    (lambda: adamupdate(W, W, None, None, 1, sqGradDecay=1.0), "sqGradDecay"),
    (lambda: adamupdate(W, W, None, None, 1, epsilon=0), "epsilon"),
    (lambda: adamupdate(W, W, None, None, 1, epsilon=None), "epsilon"),
    (lambda: adamupdate(W, W, None, None, 1, learnrate=1), "Did you mean learnRate"),
    (lambda: sgdmupdate(W, W, None, "fast"), "learnRate"),
    (lambda: sgdmupdate(W, W, None, 0.1, 1.0), "momentum"),
    (lambda: rmspropupdate(W, W, None, 0.1, 2), "sqGradDecay"),
    (lambda: dlupdate(lambda x: x, W, nargout=0), "nargout"),
    (lambda: dlupdate(lambda x: x, W, nargout=2), "one"),
    (lambda: dlupdate(lambda x: (x, x), W, nargout=3), "returned 2"),
])  # fmt: skip
def test_wrong_numbers(call, word):
    with pytest.raises(OptionError, match=word):
        call()


def test_wrong_scalars():
    with pytest.raises(ShapeError, match="iteration"):
        adamupdate(W, W, None, None, dlarray([1.0, 2.0]))
    with pytest.raises(ShapeError, match="learnRate"):
        sgdmupdate(W, W, None, dlarray([1.0, 2.0]))
    with pytest.raises(ShapeError, match="containers differ"):
        dlupdate(lambda a, b: a, PARAMS, LOW)
    with pytest.raises(DTypeError, match="function"):
        dlupdate(PARAMS, PARAMS)
    with pytest.raises(ShapeError, match="averageSqGrad of fc.W"):
        adamupdate(PARAMS, PARAMS, STATE, struct(fc=struct(W=B, b=B)), 1)


# PyTorch ----------------------------------------------------------------------------------------------------------
@pytest.mark.torch
@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop"])
def test_like_torch(name, random):
    import torch

    start = random.normal(size=(4, 3))
    make = {
        "Adam": lambda w: torch.optim.Adam([w], lr=0.01, eps=1e-300),  # torch adds epsilon to the corrected root
        "SGD": lambda w: torch.optim.SGD([w], lr=0.01, momentum=0.9),
        "RMSprop": lambda w: torch.optim.RMSprop([w], lr=0.01, alpha=0.9, eps=1e-8),
    }[name]
    update = {
        "Adam": lambda p, g, s, t: adamupdate(p, g, *(s or (None, None)), t, 0.01, epsilon=1e-300),
        "SGD": lambda p, g, s, t: sgdmupdate(p, g, *(s or (None,)), 0.01, 0.9),
        "RMSprop": lambda p, g, s, t: rmspropupdate(p, g, *(s or (None,)), 0.01, 0.9, 1e-8),
    }[name]
    w = torch.tensor(start, requires_grad=True)
    solver, p, state = make(w), dlarray(start), ()
    for t in range(1, 20):
        g = random.normal(size=start.shape)
        w.grad = torch.tensor(g)
        solver.step()
        p, *state = update(p, dlarray(g), state, t)
        np.testing.assert_allclose(p, w.detach().numpy(), rtol=1e-12)


def test_trees_of_states_match_by_place():
    tree = nested(lambda: dlarray([1.0]))
    doubled = mapped(lambda x: x * 2, tree)
    p, _ = sgdmupdate(tree, tree, doubled)
    assert p.conv.W.item() == pytest.approx(1 + 0.9 * 2 - 0.01)


def test_one_pass_over_all_parameters_is_the_step_of_each(random):
    """Outside of recordings all parameters are updated by one call of the backend: same bits as one by one."""
    shapes = [(), (1,), (5, 3), (40_000,), (3, 3, 2, 4), (0, 2)]
    p, g = [[dlarray(np.asarray(random.normal(size=s), "float32")) for s in shapes] for _ in range(2)]
    p.append(dlarray(np.asfortranarray(random.normal(size=(6, 7)))))  # another type, another memory order
    g.append(dlarray(random.normal(size=(6, 7))))
    together = adamupdate(p, g, [], [], 1)
    for i, (x, dx) in enumerate(zip(p, g)):
        alone = adamupdate(x, dx, [], [], 1)
        recorded = dlfeval(lambda x, dx: adamupdate(x, dx, [], [], 1), x, dx)
        for row, one, traced in zip(together, alone, recorded):
            assert row[i].tolist() == one.tolist() == traced.tolist() and row[i].dtype == x.dtype


# T4: what is no array is not updated ------------------------------------------------------------------------------
TABLE = pd.DataFrame({"Layer": ["conv", "fc"], "Parameter": ["W", "W"], "Value": [dlarray(1.0), dlarray(2.0)]})
STRANGE = {
    "table": (TABLE, "DataFrame"), "table in a dict": ({"w": dlarray(1.0), "t": TABLE}, "t is no array.*DataFrame"),
    "table of numbers": (pd.DataFrame({"a": [1.0, 2.0]}), "DataFrame"), "column": (pd.Series([1.0, 2.0]), "Series"),
    "text": ({"solver": "adam", "w": dlarray(1.0)}, "solver is no array.*str"), "set": ({1.0, 2.0}, "set"),
    "generator": ((x for x in [1.0]), "generator"), "deque": ([deque([1.0])], r"\[0\] is no array.*deque"),
    "mapping": (MappingProxyType({"w": 1.0}), "mappingproxy"), "user's dict": (UserDict(w=1.0), "UserDict"),
    "array of text": (np.array(["a"]), "ndarray of <U1"), "array of objects": (np.array([None, 1.0]), "of object"),
    "records": (np.zeros(2, [("w", float)]), "ndarray of"), "dates": (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
    "sparse": (csr_array(np.eye(2)), "csr_array"), "object": (object(), "object"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_T4_tables_and_other_containers_are_refused_by_name(name):
    strange, pattern = STRANGE[name]
    for call in (
        lambda: dlupdate(lambda v: v * 2, strange), lambda: dlupdate(lambda v, w: v, strange, strange),
        lambda: adamupdate(strange, strange, None, None, 1), lambda: sgdmupdate(strange, strange, None),
        lambda: rmspropupdate(strange, strange, None),
    ):  # fmt: skip
        with pytest.raises(DTypeError, match=pattern):
            call()


def test_T4_a_gradient_that_is_a_table_is_refused_by_name():
    with pytest.raises(DTypeError, match=r"grad: \[0\] is no array.*Series"):
        adamupdate([dlarray(1.0)], [pd.Series([1.0])], None, None, 1)


def test_T4_the_remedy_for_a_table_works():
    with pytest.raises(DTypeError, match=r'dict\(zip\(table.Layer \+ "." \+ table.Parameter, table.Value\)\)'):
        dlupdate(lambda v: v * 2, TABLE)
    parameters = dict(zip(TABLE.Layer + "." + TABLE.Parameter, TABLE.Value, strict=True))
    p, _ = sgdmupdate(OrderedDict(parameters), dlupdate(lambda v: v * 2, parameters), None, 0.5)
    assert type(p) is OrderedDict and {name: x.item() for name, x in p.items()} == {"conv.W": 0.0, "fc.W": 0.0}
