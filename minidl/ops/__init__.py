"""Floor 4: the vocabulary of operations. Every room declares ops and the public functions said in them."""

# ruff: noqa: I001 (one block a room, as short as can be)

from minidl.ops import indexing as indexing  # what X[...] calls
from minidl.ops import numpy_protocol as numpy_protocol  # what NumPy's functions call
from minidl.ops.activation import (
    gelu, leakyrelu, logsigmoid, logsoftmax, relu, sigmoid, softmax, softplus, stopgradient,
)  # fmt: skip
from minidl.ops.convolution import dlconv
from minidl.ops.create import eye, ones, rand, randi, randn, randperm, zeros
from minidl.ops.elementwise import (
    acos, acosh, and_, asin, asinh, atan, atan2, atanh, ceil, conj, cos, cosh, cot, csc, eps, eq, erf, exp, expm1,
    fix, floor, ge, gt, hypot, imag, isfinite, isinf, isnan, ldivide, le, log, log1p, log2, log10, lt, minus, mod, ne,
    not_, or_, plus, power, rdivide, real, realpow, rem, sec, sign, sin, sinh, sqrt, square, tan, tanh, times,
    uminus, uplus, where, xor,
)  # fmt: skip
from minidl.ops.facts import (
    canUseGPU, cast, dims, double, extractdata, finddim, gather, gpuArray, isempty, isequal, isreal, isUnderlyingType,
    length, logical, mustBeUnderlyingType, ndims, numel, single, size, stripdims, underlyingType,
)  # fmt: skip
from minidl.ops.fullyconnect import fullyconnect
from minidl.ops.linear import diag, dot, mldivide, mrdivide, mtimes, pagemtimes, trace, tril, triu
from minidl.ops.loss import crossentropy, huber, l1loss, l2loss, mse
from minidl.ops.normalization import batchnorm
from minidl.ops.python import abs, all, any, max, min, round, sum
from minidl.ops.reduction import cumprod, cumsum, logsumexp, mean, median, prod, sort, std, var, vecnorm
from minidl.ops.shape import (
    cat, circshift, ctranspose, flip, horzcat, permute, repelem, repmat, reshape, rot90, shiftdim, squeeze, transpose,
    vertcat,
)  # fmt: skip

__all__ = [
    "abs", "acos", "acosh", "all", "and_", "any", "asin", "asinh", "atan", "atan2", "atanh", "batchnorm", "canUseGPU",
    "cast", "cat", "ceil", "circshift", "conj", "cos", "cosh", "cot", "crossentropy", "csc", "ctranspose", "cumprod",
    "cumsum", "diag", "dims", "dlconv", "dot", "double", "eps", "eq", "erf", "exp", "expm1", "extractdata", "eye",
    "finddim", "fix", "flip", "floor", "fullyconnect", "gather", "ge", "gelu", "gpuArray", "gt", "horzcat", "huber",
    "hypot", "imag", "isUnderlyingType", "isempty", "isequal", "isfinite", "isinf", "isnan", "isreal", "l1loss",
    "l2loss", "ldivide", "le", "leakyrelu", "length", "log", "log10", "log1p", "log2", "logical", "logsigmoid",
    "logsoftmax", "logsumexp", "lt", "max", "mean", "median", "min", "minus", "mldivide", "mod", "mrdivide", "mse",
    "mtimes", "mustBeUnderlyingType", "ndims", "ne", "not_", "numel", "ones", "or_", "pagemtimes", "permute", "plus",
    "power", "prod", "rand", "randi", "randn", "randperm", "rdivide", "real", "realpow", "relu", "rem", "repelem",
    "repmat", "reshape", "rot90", "round", "sec", "shiftdim", "sigmoid", "sign", "sin", "single", "sinh", "size",
    "softmax", "softplus", "sort", "sqrt", "square", "squeeze", "std", "stopgradient", "stripdims", "sum", "tan",
    "tanh", "times", "trace", "transpose", "tril", "triu", "uminus", "underlyingType", "uplus", "var", "vecnorm",
    "vertcat", "where", "xor", "zeros",
]  # fmt: skip
