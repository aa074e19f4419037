"""Activations: relu, leakyrelu, sigmoid, gelu, softmax; logarithms of them; stopgradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.core.dlarray import DLArray, Operand, dlarray, public
from minidl.core.errors import choice, number
from minidl.core.op import KERNEL, MAP, case, op
from minidl.core.options import options
from minidl.core.tree import LEAF, flatten, unflatten
from minidl.ops.elementwise import abs, eq, erfc, exp, ge, log1p, log_, maximum, minimum, settled, tanh, where
from minidl.ops.formats import arranged, check, give, read, returned, rows
from minidl.ops.reduction import argmax, logsumexp_along, reduce_max, reduce_sum
from minidl.ops.views import broadcast, cast, stopgradient_

# element by element -----------------------------------------------------------------------------------------------


@op(MAP, text="maximum({0}, 0)")
def relu_(x):
    """x where it is positive, 0 elsewhere; NaN stays NaN."""


@op(MAP, text="where({1} > 0, {0}, 0)")
def relu_grad(g, y):
    """g where relu let its input through (y > 0), 0 elsewhere, at 0 too."""


relu_.vjps(lambda g, y, x: relu_grad(g, y), is_singular=False)  # by y, not x: the next layer keeps y anyway
relu_grad.vjps(lambda h, d, g, y: relu_grad(h, y), None, is_singular=False)


@public
@options
def relu(X: Operand, *, DataFormat: str | None = None) -> DLArray:
    """Rectified linear unit: y = max(x, 0).

    X : dlarray of any shape and labels; the result has the same. DataFormat changes nothing and may be given.
    The derivative is 1 for x > 0 and 0 elsewhere, at 0 too. NaN stays NaN.
    Source: Nair and Hinton, Rectified Linear Units (2010); MathWorks, reference page "relu".

    >>> relu([-1.0, 0.0, 2.0]).tolist()
    [0.0, 0.0, 2.0]
    """
    check("relu", X, DataFormat)
    return relu_(X)


@op(MAP)
def leakyrelu_(x, factor):
    """x where it is not negative, factor * x elsewhere."""
    return where(ge(x, 0), x, x * factor)


@public
@options
def leakyrelu(X: Operand, scaleFactor: Operand = 0.01, *, DataFormat: str | None = None) -> DLArray:
    """Leaky rectified linear unit: y = x for x >= 0, scaleFactor * x below.

    X : dlarray of any shape and labels; the result has the same. The derivative at 0 is 1.
    scaleFactor : number, or a dlarray that expands to X (a trained slope).
    Source: Maas et al., Rectifier Nonlinearities (2013); MathWorks, reference page "leakyrelu".

    >>> leakyrelu([-2.0, 3.0], 0.1).tolist()
    [-0.2, 3.0]
    """
    check("leakyrelu", X, DataFormat)
    if isinstance(scaleFactor, str):
        number("leakyrelu", "scaleFactor", scaleFactor, "a number", lambda s: True)
    return leakyrelu_(X, scaleFactor)


@op(MAP, domain=(-6.0, 6.0))
def sigmoid_(x):
    """1 / (1 + exp(-x)), with all its digits down to the smallest number."""
    e = exp(-abs(x))
    return where(ge(x, 0), 1, e) / (e + 1)


@op(MAP, domain=(-6.0, 6.0))
def sigmoid_slope(x):
    """The derivative of the logistic function, with all its digits where that rounds to 1."""
    e = exp(-abs(x))
    share = 1 / (e + 1)
    return e * share * share


sigmoid_.vjps(lambda g, y, x: g * sigmoid_slope(x))
sigmoid_slope.vjps(lambda h, d, x: -(h * d * tanh(x * 0.5)))


@public
@options
def sigmoid(X: Operand, *, DataFormat: str | None = None) -> DLArray:
    """Logistic function: y = 1 / (1 + exp(-x)), between 0 and 1.

    X : dlarray of any shape and labels; the result has the same. Large |x| give 0 or 1, never NaN.
    Source: MathWorks, reference page "sigmoid".

    >>> sigmoid(0.0).item()
    0.5
    """
    check("sigmoid", X, DataFormat)
    return sigmoid_(X)


@op(MAP, domain=(-6.0, 6.0))
def softplus_(x):
    """log(1 + exp(x)); x itself where exp overflows."""
    return maximum(x, 0) + log1p(exp(-abs(x)))


softplus_.vjps(lambda g, y, x: g * sigmoid_(x))


@public
@options
def softplus(X: Operand, *, DataFormat: str | None = None) -> DLArray:
    """Smooth relu: y = log(1 + exp(x)), without overflow.

    X : dlarray of any shape and labels; the result has the same. DataFormat changes nothing and may be given.
    The derivative is sigmoid(x). NaN stays NaN. MATLAB has no function of this name, but a softplusLayer.
    Source: Dugas et al., Incorporating Second-Order Functional Knowledge for Better Option Pricing (2001).

    >>> softplus([-1000.0, 0.0, 1000.0]).tolist()
    [0.0, 0.6931471805599453, 1000.0]
    """
    check("softplus", X, DataFormat)
    return softplus_(X)


@op(MAP, domain=(-6.0, 6.0))
def logsigmoid_(x):
    """-log(1 + exp(-x)); x itself where exp overflows."""
    return minimum(x, 0) - log1p(exp(-abs(x)))


logsigmoid_.vjps(lambda g, y, x: g * sigmoid_(-x))
sigmoid_.tells(log=logsigmoid_, rest=lambda x: logsigmoid_(-x))


@public
@options
def logsigmoid(X: Operand, *, DataFormat: str | None = None) -> DLArray:
    """Logarithm of the logistic function: y = log(sigmoid(x)) = -log(1 + exp(-x)), without overflow.

    X : dlarray of any shape and labels; the result has the same. DataFormat changes nothing and may be given.
    log(1 - sigmoid(x)) is logsigmoid(-x). NaN stays NaN. MATLAB has no function of this name; log(sigmoid(X)) does the
    same here.

    >>> logsigmoid([-1000.0, 0.0]).tolist()
    [-1000.0, -0.6931471805599453]
    """
    check("logsigmoid", X, DataFormat)
    return logsigmoid_(X)


@op(MAP)
def logaddexp(a, b):
    """log(exp(a) + exp(b)), without overflow."""
    return maximum(a, b) + log1p(exp(where(eq(a, b), 0, -abs(a - b))))  # of equal infinities the difference is NaN


logaddexp.vjps(
    lambda g, y, a, b: g * sigmoid_(where(eq(a, b), 0, a - b)),
    lambda g, y, a, b: g * sigmoid_(where(eq(a, b), 0, b - a)),
)


@public
def stopgradient(X: Any) -> Any:
    """The same numbers as a constant: no derivative goes through, of no order.

    X : dlarray; or struct, dict, list, tuple or dataclass with dlarrays in it, of which each becomes a constant.
    Returns the same, with the same labels. It is part of a recording like any operation, and so follows its argument in
    a replay, as extractdata(X) cannot. MATLAB has no function of this name.

    >>> from minidl import dlfeval, dlgradient
    >>> dlfeval(lambda x: dlgradient(x * stopgradient(x), x), dlarray(3.0)).item()
    3.0
    """
    if isinstance(X, DLArray):
        return DLArray(stopgradient_(X)._value, X._labels)
    leaves, structure = flatten(X)
    if structure == LEAF:
        return DLArray(stopgradient_(dlarray(X))._value)
    return unflatten(structure, [stopgradient(x) if isinstance(x, DLArray) else x for x in leaves])


@op(MAP)
def gelu_(x):
    """x times the normal distribution function at x, which is 0 from -40 on."""
    return maximum(x, -40) * (erfc(x * -math.sqrt(0.5)) * 0.5)


@op(MAP)
def gelu_tanh(x):
    """gelu, its distribution function approximated by tanh: (1 + tanh(z)) / 2 is the logistic function at 2 z."""
    x = maximum(x, -40)
    z = minimum(x, 40)  # beyond, the function is 1, and z^3 would overflow
    return x * sigmoid_(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z))


@public
@options
def gelu(X: Operand, *, Approximation: str = "none", DataFormat: str | None = None) -> DLArray:
    """Gaussian error linear unit: y = x * P(Z <= x) for a standard normal Z.

        "none": x/2 * erfc(-x / sqrt 2)        "tanh": x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))

    X : dlarray of any shape and labels; the result has the same.
    Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016); MathWorks, reference page "gelu".

    >>> round(gelu(1.0).item(), 4), round(gelu(1.0, Approximation="tanh").item(), 4)
    (0.8413, 0.8412)
    """
    check("gelu", X, DataFormat)
    return gelu_(X) if choice("gelu", "Approximation", Approximation, ("none", "tanh")) == "none" else gelu_tanh(X)


# along the channels -----------------------------------------------------------------------------------------------


@op(KERNEL, samples=lambda r: [case(r.normal(size=(4, 3)) * 3), case(r.normal(size=(5, 1)))])
def softmax_last(x):
    """exp(x) / sum(exp(x)) along the rows of x [N, C]."""
    e = exp(x - reduce_max(x, axes=(1,)))  # shifted so that exp cannot overflow
    return e / reduce_sum(e, axes=(1,))


@softmax_last.infer
def _(x):
    return x


@op(KERNEL, types="ff->f", samples=lambda r: [case(r.normal(size=(4, 3)), r.dirichlet([1.0] * 3, size=4))])
def softmax_last_grad(g, y):
    """Gradient of softmax_last by its input, from its output y."""
    weighted = settled(g * y, g)
    rest = g - reduce_sum(weighted, axes=(1,))
    return settled(y * rest, rest)


@softmax_last_grad.infer
def _(g, y):
    return g


softmax_last.vjps(lambda g, y, x: softmax_last_grad(g, y))


@op(KERNEL, samples=lambda r: [case(r.normal(size=(4, 3)) * 3), case(r.normal(size=(5, 1)))])
def logsoftmax_last(x):
    """x - log(sum(exp(x))) along the rows of x [N, C]."""
    x = x - reduce_max(x, axes=(1,))
    return x - log_(reduce_sum(exp(x), axes=(1,)))


@logsoftmax_last.infer
def _(x):
    return x


@logsoftmax_last.vjps
def _(g, y, x):
    total = broadcast(reduce_sum(g, axes=(1,)), shape=g.shape, dims=(0, 1))
    return g - settled(total * exp(y), total)


def _log_of_rest(x):
    """log(1 - softmax(x)): where x is the largest of its row, what the others have in the sum."""
    y = softmax_last(x)
    first = argmax(x, axes=(1,))
    places = broadcast(first, shape=x.shape, dims=(0, 1))
    is_most = eq(cast(places, dtype="float64"), np.arange(x.size, dtype="float64").reshape(x.shape))
    others = logsumexp_along(where(is_most, -math.inf, x), axes=(1,)) - logsumexp_along(x, axes=(1,))
    return where(is_most, broadcast(others, shape=x.shape, dims=(0, 1)), log1p(-where(is_most, 0, y)))


softmax_last.tells(log=logsoftmax_last, rest=_log_of_rest)


@public
@options
def softmax(X: Operand, *, DataFormat: str | None = None) -> DLArray:
    """Probabilities along the channels: y[c] = exp(x[c]) / sum_k exp(x[k]).

    X : dlarray with a C in its labels, or unformatted with DataFormat; C only is summed over. For another dimension
        name that one C: DataFormat="BCU".
    Returns a dlarray shaped and labelled like X; along C it sums to 1.
    Raises LabelError if there is no C.
    Source: Bishop, Pattern Recognition and Machine Learning (2006), eq. 4.62; MathWorks, reference page "softmax".

    >>> softmax([[0.0, 0.0]], DataFormat="BC").tolist()
    [[0.5, 0.5]]
    """
    x, labels, is_formatted = read("softmax", X, DataFormat)
    plan = rows("softmax", x._value.spec.shape, labels)
    y = softmax_last(arranged(x, plan.order, plan.matrix))
    return give(returned(y, plan.full, plan.back), labels, is_formatted, X)


@public
@options
def logsoftmax(X: Operand, *, DataFormat: str | None = None) -> DLArray:
    """Logarithms of probabilities along the channels: y[c] = x[c] - log(sum_k exp(x[k])).

    X : dlarray with a C in its labels, or unformatted with DataFormat, as in `softmax`.
    Returns a dlarray shaped and labelled like X. It is finite where softmax rounds to 0. MATLAB has no function of this
    name; log(softmax(X)) does the same here.
    Raises LabelError if there is no C.
    Source: Blanchard, Higham and Higham, Accurately computing the log-sum-exp and softmax functions (2021).

    >>> logsoftmax([[0.0, 1000.0]], DataFormat="BC").tolist()
    [[-1000.0, 0.0]]
    """
    x, labels, is_formatted = read("logsoftmax", X, DataFormat)
    plan = rows("logsoftmax", x._value.spec.shape, labels)
    y = logsoftmax_last(arranged(x, plan.order, plan.matrix))
    return give(returned(y, plan.full, plan.back), labels, is_formatted, X)
