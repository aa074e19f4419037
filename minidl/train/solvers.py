"""Solver updates: from parameters, gradients and state to new parameters and new state.

Each solver is a MAP op with several outputs, so a backend can run it as one loop per parameter; the functions around
the ops check their arguments and walk the trees. All arguments are checked before anything is computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from minidl import backends
from minidl.core.apply import apply_each
from minidl.core.device import is_on_gpu
from minidl.core.dlarray import DLArray, adopted, check_data, kept_data, refuse_matrix
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError, number
from minidl.core.labels import describe
from minidl.core.op import MAP, op
from minidl.core.options import options
from minidl.core.spec import TYPE_NAMES
from minidl.core.tape import open_tapes
from minidl.core.tree import LEAF, builder, flatten, matching, paths, unflatten
from minidl.ops.create import full
from minidl.ops.elementwise import expm1, sqrt, square
from minidl.ops.views import cast, on, view_as
from minidl.train import steps

Tree: TypeAlias = Any  # struct, dict, list, tuple or dataclass of arrays, nested as deep as you like; or one array

# one parameter, element by element ------------------------------------------------------------------------------
# A weight is 1 - decay, taken in double: in single precision 1 - 0.999 would be wrong in the fifth digit.


@op(MAP, types="f->fff", domain=(0.1, 0.9))
def adam(p, g, m, v, rate, gradDecay, gradWeight, sqGradDecay, sqGradWeight, epsilon):
    """One step of Adam: new parameter, new averages of gradient and squared gradient."""
    m = gradDecay * m + gradWeight * g
    v = sqGradDecay * v + sqGradWeight * square(g)
    return p - rate * m / (sqrt(v) + epsilon), m, v


@op(MAP, types="f->ff", domain=(0.1, 0.9))
def sgdm(p, g, velocity, rate, momentum):
    """One step of gradient descent with momentum: new parameter, new velocity."""
    velocity = momentum * velocity - rate * g
    return p + velocity, velocity


@op(MAP, types="f->ff", domain=(0.1, 0.9))
def rmsprop(p, g, v, rate, sqGradDecay, sqGradWeight, epsilon):
    """One step of RMSProp: new parameter, new average of the squared gradient."""
    v = sqGradDecay * v + sqGradWeight * square(g)
    return p - rate * g / (sqrt(v) + epsilon), v


# trees of parameters --------------------------------------------------------------------------------------------


@options
def adamupdate(
    params: Tree,
    grad: Tree,
    averageGrad: Tree,
    averageSqGrad: Tree,
    iteration: int | DLArray,
    learnRate: float | DLArray = 0.001,
    gradDecay: float = 0.9,
    sqGradDecay: float = 0.999,
    epsilon: float = 1e-8,
) -> tuple[Tree, Tree, Tree]:
    """Update learnable parameters by Adam (adaptive moment estimation).

        m = gradDecay * m + (1 - gradDecay) * g
        v = sqGradDecay * v + (1 - sqGradDecay) * g^2
        p = p - learnRate * sqrt(1 - sqGradDecay^t) / (1 - gradDecay^t) * m / (sqrt(v) + epsilon)

    params        : p; dlarray or NumPy array, or struct, dict, list, tuple or dataclass of them.
    grad          : g; same containers, sizes and types as params.
    averageGrad   : m of the step before; None or [] for "no state yet", which counts as zeros.
    averageSqGrad : v of the step before; None or [] likewise.
    iteration     : t; 1 for the first step. A positive whole number, or a scalar dlarray (then it is traced, its
                    number is not checked, and one trace of an accelerated function serves every iteration).
    learnRate     : number >= 0, or a scalar dlarray.
    gradDecay, sqGradDecay : numbers in [0, 1).
    epsilon       : number > 0, added to the root of v (not of v / (1 - sqGradDecay^t)).
    Returns (params, averageGrad, averageSqGrad) in the containers of params; plain arrays come back as plain arrays.
    Raises ShapeError, LabelError or DTypeError if grad or the state do not match params, OptionError for a number
    out of its range.
    Source: Kingma and Ba, Adam (2015), section 2, the variant with the corrections folded into the rate; MathWorks,
    reference page "adamupdate".

    >>> import numpy as np
    >>> p, m, v = adamupdate(np.array([1.0]), np.array([2.0]), None, None, 1, 0.5)
    >>> print(np.round(p, 6), np.round(m, 6), np.round(v, 6))
    [0.5] [0.2] [0.004]
    """
    who = "adamupdate"
    trees, numbers = (params, grad, averageGrad, averageSqGrad), (gradDecay, sqGradDecay, epsilon)
    if type(iteration) is int and iteration > 0:
        met = _met_before(adam, trees, learnRate, numbers)
        step = met and steps.again(met, trees, _adam_rate(learnRate, gradDecay, sqGradDecay, iteration))
        if step is not None:
            return step
    rate = _rate(who, learnRate)
    gradDecay = _decay(who, "gradDecay", gradDecay)
    sqGradDecay = _decay(who, "sqGradDecay", sqGradDecay)
    epsilon = number(who, "epsilon", epsilon, "a number > 0", lambda x: x > 0)
    t = _iteration(who, iteration)
    columns, put = _columns(who, params, grad=grad, averageGrad=averageGrad, averageSqGrad=averageSqGrad)
    rate = _adam_rate(rate, gradDecay, sqGradDecay, t)
    constants = (gradDecay, 1 - gradDecay, sqGradDecay, 1 - sqGradDecay, epsilon)
    return _stepped(adam, trees, columns, put, rate, numbers, constants)


@options
def sgdmupdate(
    params: Tree, grad: Tree, vel: Tree, learnRate: float | DLArray = 0.01, momentum: float = 0.9
) -> tuple[Tree, Tree]:
    """Update learnable parameters by stochastic gradient descent with momentum.

        vel = momentum * vel - learnRate * g
        p = p + vel

    params    : p; dlarray or NumPy array, or struct, dict, list, tuple or dataclass of them.
    grad      : g; same containers, sizes and types as params.
    vel       : velocity of the step before; None or [] for "no state yet", which counts as zeros.
    learnRate : number >= 0, or a scalar dlarray (then it is traced).
    momentum  : number in [0, 1); 0 is plain gradient descent.
    Returns (params, vel) in the containers of params; plain arrays come back as plain arrays.
    Raises ShapeError, LabelError or DTypeError if grad or vel do not match params, OptionError for a number out of
    its range.
    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 5.2.4; Polyak's momentum; MathWorks,
    reference page "sgdmupdate".

    >>> import numpy as np
    >>> p, vel = sgdmupdate(np.array([1.0]), np.array([2.0]), None, 0.25)
    >>> p, vel = sgdmupdate(p, np.array([2.0]), vel, 0.25)
    >>> print(p, vel)
    [-0.45] [-0.95]
    """
    who = "sgdmupdate"
    trees, numbers = (params, grad, vel), (momentum,)
    met = _met_before(sgdm, trees, learnRate, numbers)
    step = met and steps.again(met, trees, float(learnRate))
    if step is not None:
        return step
    rate = _rate(who, learnRate)
    momentum = _decay(who, "momentum", momentum)
    columns, put = _columns(who, params, grad=grad, vel=vel)
    return _stepped(sgdm, trees, columns, put, rate, numbers, (momentum,))


@options
def rmspropupdate(
    params: Tree,
    grad: Tree,
    averageSqGrad: Tree,
    learnRate: float | DLArray = 0.001,
    sqGradDecay: float = 0.9,
    epsilon: float = 1e-8,
) -> tuple[Tree, Tree]:
    """Update learnable parameters by RMSProp (root mean square propagation).

        v = sqGradDecay * v + (1 - sqGradDecay) * g^2
        p = p - learnRate * g / (sqrt(v) + epsilon)

    params        : p; dlarray or NumPy array, or struct, dict, list, tuple or dataclass of them.
    grad          : g; same containers, sizes and types as params.
    averageSqGrad : v of the step before; None or [] for "no state yet", which counts as zeros.
    learnRate     : number >= 0, or a scalar dlarray (then it is traced).
    sqGradDecay   : number in [0, 1).
    epsilon       : number > 0.
    Returns (params, averageSqGrad) in the containers of params; plain arrays come back as plain arrays.
    Raises ShapeError, LabelError or DTypeError if grad or averageSqGrad do not match params, OptionError for a
    number out of its range.
    Source: Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5 (2012); MathWorks, reference page
    "rmspropupdate".

    >>> import numpy as np
    >>> p, v = rmspropupdate(np.array([1.0]), np.array([2.0]), None, 0.5, 0.75)
    >>> print(np.round(p, 6), v)
    [0.] [1.]
    """
    who = "rmspropupdate"
    trees, numbers = (params, grad, averageSqGrad), (sqGradDecay, epsilon)
    met = _met_before(rmsprop, trees, learnRate, numbers)
    step = met and steps.again(met, trees, float(learnRate))
    if step is not None:
        return step
    rate = _rate(who, learnRate)
    sqGradDecay = _decay(who, "sqGradDecay", sqGradDecay)
    epsilon = number(who, "epsilon", epsilon, "a number > 0", lambda x: x > 0)
    columns, put = _columns(who, params, grad=grad, averageSqGrad=averageSqGrad)
    constants = (sqGradDecay, 1 - sqGradDecay, epsilon)
    return _stepped(rmsprop, trees, columns, put, rate, numbers, constants)


@options
def dlupdate(fun: Callable[..., Any], A1: Tree, *A: Tree, nargout: int = 1) -> Any:
    """Apply a function to each array of a tree, or to the arrays at the same place of several trees.

    fun     : function of as many arrays as trees are given; returns an array, or a tuple of `nargout` of them.
    A1, A   : struct, dict, list, tuple or dataclass of arrays (or one array); all with the same fields.
    nargout : number of results of fun to collect.
    Returns the results of fun in the containers of A1; a tuple of `nargout` such trees if nargout > 1.
    Raises ShapeError if the containers differ, DTypeError for what is no array (text, tables, other containers),
    OptionError if fun does not return `nargout` results.
    Source: MathWorks, reference page "dlupdate".

    >>> dlupdate(lambda g, p: g + 0.5 * p, {"w": 1.0, "b": 2.0}, {"w": 2.0, "b": 4.0})
    {'w': 2.0, 'b': 4.0}
    """
    who = "dlupdate"
    if not callable(fun):
        raise DTypeError(f"{who}: the first argument is the function to apply; got {type(fun).__name__}.")
    if isinstance(nargout, bool) or not isinstance(nargout, (int, np.integer)) or nargout < 1:
        raise OptionError(f"{who}: nargout is a whole number >= 1; got {nargout!r}.")
    leaves, structure = flatten(A1)
    columns = [leaves, *(matching(who, A1, structure, other) for other in A)]
    for tree, column in zip((A1, *A), columns):
        _check_leaves(who, tree, column)
    rows = zip(*columns)
    if nargout == 1:
        return unflatten(structure, [fun(*row) for row in rows])
    made: list[list[Any]] = [[] for _ in range(nargout)]
    for row in rows:
        results = fun(*row)
        if not isinstance(results, tuple) or len(results) < nargout:
            came = f"{len(results)}" if isinstance(results, tuple) else "one"
            raise OptionError(
                f"{who}: nargout={nargout} results are wanted, the function returned {came}. "
                f"Return a tuple of {nargout}, or give another nargout."
            )
        for column, result in zip(made, results):
            column.append(result)
    return tuple([unflatten(structure, column) for column in made])


# arguments ------------------------------------------------------------------------------------------------------


def _met_before(op: Any, trees: tuple[Tree, ...], rate: Any, numbers: tuple[Any, ...]) -> Any:
    """What is known of the arguments of a step on a GPU, if they were met before; otherwise None."""
    if not backends.has_used_gpu() or type(rate) is not float or rate < 0 or not _FLOAT.issuperset(map(type, numbers)):
        return None
    return steps.met_before(op, trees, numbers)


_FLOAT = {float}


def _stepped(
    op: Any, trees: tuple[Tree, ...], columns: list[list[DLArray]], put: _Put, rate: Any, numbers: tuple[Any, ...],
    constants: tuple[Any, ...],
) -> tuple[Tree, ...]:  # fmt: skip
    """The results of a solver's op, in trees."""
    if type(rate) is float and columns[0] and columns[0][0].device == "gpu" and not put.has_plain:
        form = put.structure, put.build
        found: tuple[Tree, ...] | None = steps.first(op, trees, columns, *form, rate, numbers, constants)
        if found is not None:
            return found
    return put(apply_each(op, (*columns, _per_type(rate, columns[0]), *constants)))


class _Put:
    """Puts results back into trees like the parameters: a list of arrays for each tree."""

    def __init__(self, form: _Form, leaves: list[Any], is_plain: list[bool]) -> None:
        self.structure, self.build, self._leaves, self._is_plain = form.structure, form.build, leaves, is_plain
        self.has_plain = True in is_plain

    def __call__(self, results: list[list[Any]]) -> tuple[Tree, ...]:
        if self.has_plain:
            results = [
                [_unwrap(y, leaf) if plain else y for y, plain, leaf in zip(column, self._is_plain, self._leaves)]
                for column in results
            ]
        return tuple(map(self.build, results))


def _columns(who: str, params: Tree, **others: Tree) -> tuple[list[list[DLArray]], _Put]:
    """(the arrays of parameters, gradients and state, a list each; what puts results back into trees)."""
    leaves, form = _read(params)
    if form.is_mixed:
        _check_leaves(who, params, leaves)
    arrays = [leaf if isinstance(leaf, DLArray) else _wrap(who, leaf) for leaf in leaves]
    is_plain = [not isinstance(leaf, DLArray) for leaf in leaves]
    specs, labels = [p._value.spec for p in arrays], [p._labels for p in arrays]
    columns: list[Any] = [arrays]
    for name, tree in others.items():
        if tree is None or (isinstance(tree, (list, tuple)) and not len(tree) and leaves):
            if name == "grad":
                raise ShapeError(f"{who}: there are no gradients. Give the ones that dlgradient returned for params.")
            columns.append(None)
            continue
        column = form.read(tree)
        if column is None or [x._value.spec for x in column] != specs or [x._labels for x in column] != labels:
            column = _matched(who, name, params, form.structure, tree, arrays, is_plain)
        columns.append(column)
    if None in columns:
        zeros = [_zeros_like(p) for p in arrays]
        columns = [zeros if column is None else column for column in columns]
    return columns, _Put(form, leaves, is_plain)


def _matched(
    who: str, name: str, params: Tree, structure: Any, tree: Tree, arrays: list[DLArray], is_plain: list[bool]
) -> list[DLArray]:
    """The arrays of a gradient or state, checked against those of the parameters."""
    column = matching(who, params, structure, tree)
    _check_leaves(f"{who}: {name}", tree, column)
    for i, (leaf, p) in enumerate(zip(column, arrays)):
        if not isinstance(leaf, DLArray):
            column[i] = leaf = _wrap(who, leaf)
        elif is_plain[i]:
            is_plain[i] = False  # a plain parameter with a dlarray gradient becomes a dlarray, so tracing goes on
        if leaf._value.spec != p._value.spec or leaf._labels != p._labels:
            _check_match(who, name, paths(params)[i], leaf, p)
            column[i] = DLArray(leaf._value, p._labels)  # only one of them is labelled
    return column


class _Form:
    """How trees of one structure are read and built.

    read(tree) : the leaves of a tree that has this very structure and nothing but dlarrays in it; otherwise None.
    """

    def __init__(self, structure: Any, *, is_fast: bool) -> None:
        self.structure, self.is_mixed = structure, not is_fast
        self.read: Callable[[Tree], list[Any] | None] = _reader(structure) if is_fast else lambda tree: None
        self.build = builder(structure) if is_fast else functools.partial(unflatten, structure)


_forms: list[_Form] = []  # those met last: a training has one, or one per network
_MOST_FORMS = 8


def _read(tree: Tree) -> tuple[list[Any], _Form]:
    """(the leaves of a tree, its form)."""
    for form in _forms:
        leaves = form.read(tree)
        if leaves is not None:
            return leaves, form
    leaves, structure = flatten(tree)
    is_fast = {DLArray}.issuperset(map(type, leaves)) and _is_named(structure)
    form = _Form(structure, is_fast=is_fast)
    if is_fast:
        _forms[:] = [form, *_forms[: _MOST_FORMS - 1]]
    return leaves, form


def _is_named(structure: Any) -> bool:
    """Whether all fields have texts for names: 1 and True would be the same."""
    if structure is None or structure == LEAF:
        return True
    _, names, children = structure
    return all(type(name) is str for name in names or ()) and all(map(_is_named, children))


def _reader(structure: Any) -> Callable[[Tree], list[Any] | None]:
    """`_Form.read`, as straight code."""
    space: dict[str, Any] = {"DLArray": {DLArray}}
    lines, found = ["def read(x0):"], []

    def write(node: Any, x: str) -> None:
        if node is None:
            lines.append(f"    if {x} is not None: return None")
            return
        if node == LEAF:
            found.append(x)
            return
        kind, names, children = node
        n = len(space)
        space[f"k{n}"], space[f"n{n}"] = kind, names
        parts = [f"x{len(lines)}_{i}" for i in range(len(children))]
        test, values = f"len({x}) != {len(children)}", x
        if names is not None:
            is_dict = issubclass(kind, dict)
            test = f"tuple({x}) != n{n}" if is_dict else "False"
            values = f"{x}.values()" if is_dict else "".join(f"{x}.{name}, " for name in names)
        lines.append(f"    if type({x}) is not k{n} or {test}: return None")
        if parts:
            lines.append(f"    {', '.join(parts)}, = {values}")
        for child, part in zip(children, parts):
            write(child, part)

    write(structure, "x0")
    lines.append(f"    found = [{', '.join(found)}]")
    lines.append("    return found if DLArray.issuperset(map(type, found)) else None")
    exec(compile("\n".join(lines), "<reader>", "exec"), space)
    read: Callable[[Tree], list[Any] | None] = space["read"]
    return read


def _check_leaves(who: str, tree: Tree, leaves: list[Any]) -> None:
    """Raise DTypeError, with the path, for a leaf that is neither array nor number: a table, a text, a set ..."""
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, (DLArray, float, int, np.generic)) and not isinstance(leaf, (np.str_, np.bytes_, np.void)):
            continue
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiubc" or is_on_gpu(leaf):
            continue
        path, kind = paths(tree)[place], type(leaf).__name__
        if isinstance(leaf, np.ndarray):
            kind += f" of {leaf.dtype}"
        if hasattr(leaf, "columns"):
            remedy = 'Give its arrays in a dict: dict(zip(table.Layer + "." + table.Parameter, table.Value)).'
        else:
            remedy = "Arrays are found in struct, dict, list, tuple and dataclass: put nothing else into these."
        raise DTypeError(f"{who}: {path or 'the argument'} is no array but of type {kind}. {remedy}")


def _wrap(who: str, x: Any) -> DLArray:
    refuse_matrix(who, x)
    data = check_data(who, x)
    return adopted(kept_data(data, x) if open_tapes() else data)  # without a tape a solver's step reads it at once


def _unwrap(y: DLArray, like: Any) -> Any:
    data = y.extractdata()
    if isinstance(like, np.ndarray) or is_on_gpu(like):
        return data
    return data.item() if isinstance(like, (int, float)) else data[()]


def _zeros_like(p: DLArray) -> DLArray:
    return DLArray(full(shape=p.shape, value=0.0, dtype=p.dtype.name, device=p.device)._value, p._labels)


def _check_match(who: str, name: str, path: str, x: DLArray, p: DLArray) -> None:
    """Complain if a gradient or state does not have its parameter's size, type and (where both are labelled) labels."""
    where = f" of {path}" if path else ""
    if x.shape != p.shape:
        raise ShapeError(
            f"{who}: {name}{where} is {describe(x.shape, x._labels)}, the parameter {describe(p.shape, p._labels)}. "
            "Both need the same size: give the gradient or state that belongs to this parameter."
        )
    if x.dtype != p.dtype:
        is_, wanted = TYPE_NAMES[x.dtype], TYPE_NAMES[p.dtype]
        raise DTypeError(
            f"{who}: {name}{where} is {is_}, the parameter {wanted}. Convert one of them, for example with "
            f'x.astype("{np.dtype(p.dtype).name}").'
        )
    if x._labels and p._labels and x._labels != p._labels:
        raise LabelError(
            f'{who}: {name}{where} has format "{x._labels}", the parameter "{p._labels}". '
            "Give both the same labels, or none."
        )


def _decay(who: str, name: str, x: Any) -> float:
    return number(who, name, x, "a number in [0, 1)", lambda x: 0 <= x < 1)


def _scalar(who: str, name: str, x: DLArray) -> DLArray:
    """A scalar dlarray without labels and dimensions, so that it expands to any parameter."""
    if x.size != 1 or x.dtype.kind != "f":
        raise ShapeError(f"{who}: {name} is a number or a real scalar dlarray; got {x.dtype} {describe(x.shape)}.")
    return view_as(x, shape=()) if x.shape else DLArray(x._value)


def _rate(who: str, x: Any) -> float | DLArray:
    if isinstance(x, DLArray):
        return _scalar(who, "learnRate", x)
    return number(who, "learnRate", x, "a number >= 0 or a scalar dlarray", lambda x: x >= 0)


def _iteration(who: str, x: Any) -> float | DLArray:
    if isinstance(x, DLArray):
        return _scalar(who, "iteration", x)
    expected = "a positive whole number (1 for the first step) or a scalar dlarray"
    return number(who, "iteration", x, expected, lambda x: x >= 1 and x == int(x))


def _adam_rate(rate: Any, gradDecay: float, sqGradDecay: float, t: Any) -> Any:
    """The rate, with the corrections of the averages' beginning at zero."""
    root = sqrt if isinstance(t, DLArray) else math.sqrt
    return rate * (root(_correction(sqGradDecay, t)) / _correction(gradDecay, t))


def _correction(decay: float, t: Any) -> Any:
    """1 - decay^t, without cancellation: at t = 1 and decay = 0.999 single precision would lose four digits."""
    if decay == 0:
        return 1.0
    return -(expm1 if isinstance(t, DLArray) else math.expm1)(t * math.log(decay))


def _per_type(rate: Any, params: list[DLArray]) -> Any:
    """The rate for each parameter: a number as it is, an array as a list, converted once per type and device."""
    if not isinstance(rate, DLArray):
        return rate
    found: dict[Any, DLArray] = {(rate.dtype, rate.device): rate}
    for p in params:
        if (p.dtype, p.device) not in found:
            fitting = rate if rate.dtype == p.dtype else cast(rate, dtype=p.dtype.name)
            found[p.dtype, p.device] = on(fitting, p.device)
    return [found[p.dtype, p.device] for p in params]
