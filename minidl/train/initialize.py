"""Initial values of learnable parameters: the helper functions that MathWorks' training-loop examples define.

Results are unformatted dlarrays, single unless className says "double". Random ones draw from minidl's global
generator, so `rng(seed)` makes them repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from minidl.core.dlarray import DLArray, adopted
from minidl.core.errors import ShapeError, choice, number
from minidl.core.options import options
from minidl.core.random import host_generator

Size: TypeAlias = int | Sequence[int] | np.ndarray


@options
def initializeGlorot(sz: Size, numOut: float, numIn: float, className: str = "single") -> DLArray:
    """Weights drawn evenly from -a..a, so that forward and backward signals keep their variance.

        a = sqrt(6 / (numIn + numOut))

    sz     : size of the weights; list, tuple or a number (n gives a vector of n).
    numOut : connections that leave a unit: prod(filterSize) * numFilters, or outputs of a fully connected layer.
    numIn  : connections that enter a unit: prod(filterSize) * numChannels, or inputs of the layer.
    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks (2010),
    eq. 16; MathWorks, "Initialize Learnable Parameters for Model Function".

    >>> weights = initializeGlorot([3, 3, 1, 32], 288, 9)
    >>> weights.shape, weights.underlyingType(), bool(abs(weights.extractdata()).max() <= (6 / 297) ** 0.5)
    ((3, 3, 1, 32), 'single', True)
    """
    who = "initializeGlorot"
    size, dtype = _size(who, sz), _dtype(who, className)
    bound = math.sqrt(6 / (_count(who, "numOut", numOut) + _count(who, "numIn", numIn)))
    z = host_generator().random(size, dtype=dtype)
    return adopted(dtype(bound) * (2 * z - 1))


@options
def initializeHe(sz: Size, numIn: float, className: str = "single") -> DLArray:
    """Normally distributed weights that keep the variance through layers with ReLU.

        w ~ N(0, 2 / numIn)

    sz    : size of the weights; list, tuple or a number (n gives a vector of n).
    numIn : connections that enter a unit: prod(filterSize) * numChannels, or inputs of a fully connected layer.
    Source: He et al., Delving Deep into Rectifiers (2015), eq. 10; MathWorks, "Initialize Learnable Parameters for
    Model Function".

    >>> initializeHe([3, 3, 8, 16], 72).shape
    (3, 3, 8, 16)
    """
    who = "initializeHe"
    size, dtype = _size(who, sz), _dtype(who, className)
    sigma = math.sqrt(2 / _count(who, "numIn", numIn))
    return adopted(dtype(sigma) * host_generator().standard_normal(size, dtype=dtype))


@options
def initializeGaussian(sz: Size, mu: float = 0.0, sigma: float = 0.01, className: str = "single") -> DLArray:
    """Normally distributed weights: mean mu, standard deviation sigma.

    sz : size of the weights; list, tuple or a number (n gives a vector of n).
    Source: MathWorks, "Initialize Learnable Parameters for Model Function".

    >>> initializeGaussian([2, 3], 1, 0).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    who = "initializeGaussian"
    size, dtype = _size(who, sz), _dtype(who, className)
    mu = number(who, "mu", mu, "a finite number", lambda x: True)
    sigma = number(who, "sigma", sigma, "a number >= 0", lambda x: x >= 0)
    return adopted(dtype(mu) + dtype(sigma) * host_generator().standard_normal(size, dtype=dtype))


@options
def initializeOrthogonal(sz: Size, className: str = "single") -> DLArray:
    """A random matrix with orthonormal columns (orthonormal rows if it is wider than tall).

        Z ~ N(0, 1),  Z = Q R,  w = Q diag(sign(diag(R)))

    sz : size of the weights, at least two dimensions; all but the last count together as rows.
    Source: Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks (2014); MathWorks, "Initialize Learnable Parameters for Model Function".

    >>> w = initializeOrthogonal([4, 3], "double").extractdata()
    >>> bool(abs(w.T @ w - [[1, 0, 0], [0, 1, 0], [0, 0, 1]]).max() < 1e-12)
    True
    """
    who = "initializeOrthogonal"
    size, dtype = _size(who, sz), _dtype(who, className)
    if len(size) < 2:
        raise ShapeError(f"{who}: a matrix has at least two dimensions; got size {list(size)}. Give [rows, columns].")
    rows, columns = math.prod(size[:-1]), size[-1]
    z = host_generator().standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(z)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # without it Q would not be evenly distributed
    return adopted(np.ascontiguousarray(q if rows >= columns else q.T, dtype=dtype).reshape(size))


@options
def initializeZeros(sz: Size, className: str = "single") -> DLArray:
    """Zeros, as for a bias or an offset.

    sz : size; list, tuple or a number (n gives a vector of n).
    Source: MathWorks, "Initialize Learnable Parameters for Model Function".

    >>> initializeZeros([2, 1]).tolist()
    [[0.0], [0.0]]
    """
    who = "initializeZeros"
    return adopted(np.zeros(_size(who, sz), _dtype(who, className)))


@options
def initializeOnes(sz: Size, className: str = "single") -> DLArray:
    """Ones, as for a scale.

    sz : size; list, tuple or a number (n gives a vector of n).
    Source: MathWorks, "Initialize Learnable Parameters for Model Function".

    >>> initializeOnes([1, 2], "double").tolist()
    [[1.0, 1.0]]
    """
    who = "initializeOnes"
    return adopted(np.ones(_size(who, sz), _dtype(who, className)))


@options
def initializeUnitForgetGate(numHiddenUnits: int, className: str = "single") -> DLArray:
    """Bias of an LSTM whose forget gate starts open: 4 numHiddenUnits x 1, zeros, ones for the forget gate.

    The gates stand in the order input, forget, cell candidate, output.
    Source: Jozefowicz, Zaremba and Sutskever, An Empirical Exploration of Recurrent Network Architectures (2015);
    MathWorks, "Initialize Learnable Parameters for Model Function".

    >>> initializeUnitForgetGate(2).extractdata().ravel().tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    who = "initializeUnitForgetGate"
    dtype = _dtype(who, className)
    expected = "a positive whole number"
    units = int(number(who, "numHiddenUnits", numHiddenUnits, expected, lambda x: x >= 1 and x == int(x)))
    bias = np.zeros((4 * units, 1), dtype)
    bias[units : 2 * units] = 1
    return adopted(bias)


def _size(who: str, sz: Any) -> tuple[int, ...]:
    sizes = [sz] if isinstance(sz, (int, np.integer)) else sz
    try:
        size = tuple([n if isinstance(n, int) else int(n) for n in sizes])
        is_right = all(a == b and a >= 0 and not isinstance(b, bool) for a, b in zip(size, sizes))
    except (TypeError, ValueError, OverflowError):
        is_right = False
    if not is_right or isinstance(sz, (str, bytes, dict)):
        raise ShapeError(f"{who}: a size is a list of whole numbers >= 0, such as [3, 3, 1, 32]; got {sz!r}.")
    return size


def _dtype(who: str, className: object) -> type[np.float32 | np.float64]:
    return np.float32 if choice(who, "className", className, ("single", "double")) == "single" else np.float64


def _count(who: str, name: str, x: Any) -> float:
    return number(who, name, x, "a number > 0", lambda x: x > 0)
