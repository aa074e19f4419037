"""Values never change: a NumPy array that its owner changes in place later alters no gradient, result or replay.

Ways in (rows of WAYS) times moments of the change: before dlgradient, between recording and replay, after the call.
"""

from __future__ import annotations

import numpy as np
import pytest

import minidl as m
from minidl.backends import BACKENDS, use_backend
from minidl.core.op import OPS
from minidl.core.tape import Tape, opened
from minidl.core.tree import flatten

R = np.random.default_rng(41)


def sample(*shape):
    return R.uniform(0.2, 0.8, shape)


def total(y):
    return (y * y).sum("all")


def assigned(x, key, V):
    y = +x
    y[key] = V
    return y


def adam(x, state):
    step = m.adamupdate(m.struct(w=x), m.struct(w=state["g"]), m.struct(w=state["m"]), m.struct(w=state["v"]), 3)
    return sum((total(tree.w) for tree in step), start=0.0)


IMAGES, MATRIX, PICKS = sample(5, 5, 2, 3), sample(4, 3), np.array([2, 0, 2])
WAYS = {  # how plain arrays come beside a traced x: x, the arrays, the loss that both give
    "dlarray(A)": (MATRIX, sample(4, 3), lambda x, A: total(x * m.dlarray(A))),
    "dlarray(A, fmt)": (MATRIX, sample(3, 4), lambda x, A: total(m.dlarray(x, "CB") * m.dlarray(A, "BC"))),
    "x * A": (MATRIX, sample(4, 3), lambda x, A: total(x * A)),
    "A + x": (MATRIX, sample(4, 3), lambda x, A: total(A + x)),
    "x ** A": (MATRIX, sample(4, 3), lambda x, A: total(x**A)),
    "x * part of A": (MATRIX, sample(8, 3), lambda x, A: total(x * A[::2])),
    "x - A, expanded": (MATRIX, sample(1, 3), lambda x, A: total(x - A)),
    "x * A of another type": (MATRIX, sample(4, 3).astype(np.float32), lambda x, A: total(x * A)),
    "A @ x": (MATRIX, sample(2, 4), lambda x, A: total(A @ x)),
    "np.maximum(A, x)": (MATRIX, sample(4, 3), lambda x, A: total(np.maximum(A, x))),
    "where(A, x, x)": (MATRIX, sample(4, 3) > 0.5, lambda x, A: total(m.where(A, x, 2 * x))),
    "cat of x and A": (MATRIX, sample(2, 3), lambda x, A: total(m.cat(0, x, A)) * m.cat(0, x, A).mean("all")),
    "reshape(A)": (MATRIX, sample(3, 4), lambda x, A: total(x * m.reshape(A, 4, 3))),
    "permute(A)": (MATRIX, sample(3, 4), lambda x, A: total(x * m.permute(A, 1, 0))),
    "x[A]": (MATRIX, PICKS, lambda x, A: total(x[A])),
    "x[:, A]": (MATRIX, PICKS, lambda x, A: total(x[:, A])),
    "x[A, A]": (MATRIX, PICKS, lambda x, A: total(x[A, A])),
    "x[mask]": (MATRIX, sample(4, 3) > 0.5, lambda x, A: total(x[A])),
    "x[0] = A": (MATRIX, sample(3), lambda x, A: total(assigned(x, 0, A) * x)),
    "x[A] = 2": (MATRIX, PICKS, lambda x, A: total(assigned(x, A, 2.0))),
    "x[mask] = 2": (MATRIX, sample(4, 3) > 0.5, lambda x, A: total(assigned(x, A, 2.0))),
    "weights of dlconv": (IMAGES, sample(3, 3, 2, 4), lambda x, A: total(m.dlconv(m.dlarray(x, "SSCB"), A, 0))),
    "bias of dlconv": (IMAGES, sample(4), lambda x, A: total(m.dlconv(m.dlarray(x, "SSCB"), np.ones((2, 2, 2, 4)), A))),
    "weights of fullyconnect": (MATRIX, sample(2, 4), lambda x, A: total(m.fullyconnect(m.dlarray(x, "CB"), A, 0))),
    "scale of batchnorm": (MATRIX, sample(4), lambda x, A: total(m.batchnorm(m.dlarray(x, "CB"), np.zeros(4), A))),
    "targets of crossentropy": (MATRIX, sample(4, 3), lambda x, A: m.crossentropy(m.dlarray(x, "CB"), A)),
    "mask of crossentropy": (MATRIX, sample(4, 3) > 0.5,
                             lambda x, A: m.crossentropy(m.dlarray(x, "CB"), np.full((4, 3), 0.5), Mask=A)),
    "targets of mse": (MATRIX, sample(4, 3), lambda x, A: m.mse(m.dlarray(x, "CB"), A)),
    "gradients of sgdmupdate": (MATRIX, sample(4, 3), lambda x, A: total(m.sgdmupdate(x, A, None)[0])),
    "state of rmspropupdate": (MATRIX, sample(4, 3), lambda x, A: total(m.rmspropupdate(x, x * x, A, 0.1)[0])),
    "struct of adamupdate": (MATRIX, {name: sample(4, 3) for name in "gmv"}, adam),
}  # fmt: skip


@pytest.fixture(params=sorted(BACKENDS), autouse=True)
def backend(request):
    with use_backend(request.param):
        yield request.param


def copied(A):
    return {name: a.copy() for name, a in A.items()} if isinstance(A, dict) else A.copy()


def change(A):
    """Other numbers in every array, valid wherever the old ones were."""
    for a in A.values() if isinstance(A, dict) else [A]:
        a[...] = ~a if a.dtype.kind == "b" else 1 - a if a.dtype.kind == "f" else a[::-1] // 2 + 1


def step_of(loss, late=lambda A: None):
    """A function of x and A: loss and gradient; `late` is done to A between the two."""

    def step(x, A):
        y = loss(x, A)
        late(A)
        return y, m.dlgradient(y, x)

    return step


def numbers(results):
    return [y.extractdata().tobytes() for y in results]


@pytest.mark.parametrize("way", WAYS)
def test_the_rows_depend_on_their_arrays(way):
    x, A, loss = WAYS[way]
    other = copied(A)
    change(other)
    assert numbers(m.dlfeval(step_of(loss), m.dlarray(x), A)) != numbers(m.dlfeval(step_of(loss), m.dlarray(x), other))


@pytest.mark.parametrize("way", WAYS)
def test_A14_changed_before_dlgradient(way):
    x, A, loss = WAYS[way]
    expected = m.dlfeval(step_of(loss), m.dlarray(x), copied(A))
    found = m.dlfeval(step_of(loss, late=change), m.dlarray(x), copied(A))
    assert numbers(found) == numbers(expected)


@pytest.mark.parametrize("way", WAYS)
def test_A14_changed_after_the_call(way):
    x, A, loss = WAYS[way]
    given_x, given_A = x.copy(), copied(A)
    X = m.dlarray(given_x)
    expected = numbers([loss(m.dlarray(x), A)])
    given_x[...] = 0
    y = loss(X, given_A)
    change(given_A)
    assert numbers([y]) == expected and X.numpy().tobytes() == x.tobytes()


@pytest.mark.filterwarnings("ignore::minidl.RetraceWarning")
@pytest.mark.parametrize("is_captured", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_A14_changed_between_recording_and_replay(way, is_captured):
    """The function sees the array as it is at each call; what an earlier call returned stays as it was."""
    x, A, loss = WAYS[way]
    A = copied(A)
    step = step_of(loss)
    inside = (lambda X: step(X, A)) if is_captured else step
    fun = m.dlaccelerate(inside, Numerics="exact")
    rest = () if is_captured else (A,)
    X = m.dlarray(x)
    kept, expected = [], []
    for turn in range(6):
        if turn % 2 == 0:
            before = copied(A)
        found = m.dlfeval(fun, X, *rest)
        kept.append(found)
        expected.append(numbers(m.dlfeval(step, m.dlarray(x), before)))
        if turn % 2 == 1:
            change(A)
    assert list(map(numbers, kept)) == expected
    assert fun.HitRate >= 50  # of six calls every second one at least


def test_a_captured_dlarray_does_not_follow_its_array():
    A = sample(4, 3)
    W = m.dlarray(A)
    fun = m.dlaccelerate(lambda X: m.dlgradient((X * W).sum("all"), X))
    expected = A.tobytes()
    for _ in range(3):
        assert m.dlfeval(fun, m.dlarray(MATRIX)).extractdata().tobytes() == expected
        A *= 2
    assert fun.HitRate == pytest.approx(200 / 3)


# results of plain calls -------------------------------------------------------------------------------------------
def sample_calls(op):
    """Calls of an op with plain arrays, from what the op declares for tests."""
    found = op.samples(np.random.default_rng(5)) if op.samples else [([sample(2, 3)] * (op.arity or 3), {})]
    for inputs, params in found:
        plain = [np.array(x) if isinstance(x, np.ndarray) else x for x in inputs]
        yield [x > 0.5 if op.input_type(i) == "b" and isinstance(x, np.ndarray) else x
               for i, x in enumerate(plain)], params  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name, op in OPS.items() if op.arity != 0))
def test_no_op_keeps_the_memory_of_plain_operands(name):
    op = OPS[name]
    for inputs, params in sample_calls(op):
        arrays = [x for x in inputs if isinstance(x, np.ndarray)]
        results = op(*inputs, **params)
        with opened(Tape(everything=True)) as tape:
            op(*inputs, **params)
        outputs = [y._value for y in (results if isinstance(results, tuple) else (results,))]
        values = [x for call in tape.calls for x in (*call.inputs, *call.outputs) if hasattr(x, "spec")]
        assert values and not any(np.shares_memory(v.data, x) for v in outputs + values for x in arrays)


VIEWS = {
    "reshape": lambda A: m.reshape(A, 3, 4), "reshape to the same": lambda A: m.reshape(A, 4, 3),
    "reshape by rows": lambda A: m.reshape(A, -1, Order="C"), "permute": lambda A: m.permute(A, 1, 0),
    "permute nothing": lambda A: m.permute(A, 0, 1), "transpose": m.transpose, "squeeze": m.squeeze, "flip": m.flip,
    "rot90": m.rot90, "shiftdim": lambda A: m.shiftdim(A, 1), "circshift by nothing": lambda A: m.circshift(A, 0),
    "repmat once": lambda A: m.repmat(A, 1, 1), "stripdims": m.stripdims, "uplus": m.uplus,
    "cat": lambda A: m.cat(0, A), "power 1": lambda A: m.power(A, 1), "relu": m.relu,
    "sum along nothing": lambda A: m.sum(A, []),
    "dlarray": m.dlarray, "dlarray with labels": lambda A: m.dlarray(A, "SSCB"),
    "sort": m.sort, "mean of a dimension of size 1": lambda A: m.mean(m.reshape(A, 4, 3, 1), 2),
    "dlupdate": lambda A: m.dlupdate(m.dlarray, A),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_results_of_plain_arrays_are_their_own(name):
    A = sample(4, 3)
    y = VIEWS[name](A)
    before = y.tolist()
    A[...] = -1
    assert isinstance(y, m.DLArray) and y.tolist() == before


def test_solvers_of_plain_arrays():
    params, g = m.struct(w=sample(3), b=np.float32([1, 2])), m.struct(w=sample(3), b=np.float32([3, 4]))
    p, averages, squares = m.adamupdate(params, g, None, None, 1)
    kept = [leaf.copy() for leaf in flatten([p, averages, squares])[0]]
    for leaf in flatten([params, g])[0]:
        leaf[...] = -1
    assert all(map(np.array_equal, flatten([p, averages, squares])[0], kept))


# mini-batches -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("environment", ["serial", "background"])
@pytest.mark.parametrize("cast", ["single", "double", ""])
@pytest.mark.parametrize("fmt", ["", "BC"])
def test_a_mini_batch_function_may_use_its_array_again(environment, cast, fmt):
    room = np.zeros((2, 3), np.float32)

    def gather_into_room(cells):
        room[...] = np.stack(cells).reshape(2, 3)
        return room

    data = np.arange(24.0).reshape(8, 3)
    mbq = m.minibatchqueue(m.arrayDatastore(data), MiniBatchSize=2, MiniBatchFcn=gather_into_room, OutputCast=cast,
                           MiniBatchFormat=fmt, PreprocessingEnvironment=environment)  # fmt: skip
    batches = list(mbq)
    for k, X in enumerate(batches):
        expected = data[2 * k : 2 * k + 2]
        assert X.dtype == (np.float64 if cast == "double" else np.float32)
        np.testing.assert_array_equal(X.numpy(), expected.T if fmt else expected)


def test_collated_mini_batches_do_not_follow_the_data():
    data = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    for ds in (m.arrayDatastore(data), m.arrayDatastore(list(data)), m.transform(m.arrayDatastore(data), lambda x: x)):
        X = next(m.minibatchqueue(ds, MiniBatchSize=4))
        before = X.tolist()
        data += 1
        assert X.tolist() == before


def test_mini_batches_are_copied_at_most_once():
    made = []

    def stacked(cells):
        made.append(np.stack(cells, axis=-1))
        return made[-1]

    data = np.zeros((4, 50, 50))
    for cast, is_copied in (("single", True), ("", True)):
        X = next(m.minibatchqueue(m.arrayDatastore(data), MiniBatchSize=4, MiniBatchFcn=stacked, OutputCast=cast))
        assert np.shares_memory(np.asarray(X), made[-1]) is not is_copied
    made.clear()

    def frozen(cells):
        made.append(np.stack(cells, axis=-1))
        made[-1].flags.writeable = False
        return made[-1]

    X = next(m.minibatchqueue(m.arrayDatastore(data), MiniBatchSize=4, MiniBatchFcn=frozen, OutputCast="double"))
    assert np.shares_memory(np.asarray(X), made[-1])
