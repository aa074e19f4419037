"""What other libraries call it: names that minidl does not have, and what is written instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from minidl.core.errors import PropertyError, nearest

METHODS = {
    "backward": "Gradients are results: g = dlgradient(loss, parameters), in a function that dlfeval calls.",
    "grad": "Gradients are results: g = dlgradient(loss, parameters), in a function that dlfeval calls.",
    "requires_grad": "All dlarrays among the arguments of dlfeval(fun, ...) are traced.",
    "requires_grad_": "All dlarrays among the arguments of dlfeval(fun, ...) are traced.",
    "is_leaf": "All dlarrays among the arguments of dlfeval(fun, ...) are traced.",
    "detach": "Not traced: stopgradient(X); the plain data: extractdata(X).",
    "data": "The plain data, not traced: extractdata(X).",
    "values": "The plain data, not traced: extractdata(X), or X.numpy().",
    "to": 'To a device: gpuArray(X) or gather(X). To a type: cast(X, "single").',
    "cpu": "To the host's memory: gather(X).",
    "cuda": "To the GPU: gpuArray(X).",
    "is_cuda": 'Whose memory the data lie in: X.device, "cpu" or "gpu".',
    "float": "In single precision: single(X).",
    "double": "In double precision: double(X).",
    "half": "dlarrays are single, double or logical: single(X).",
    "type": 'In another type: cast(X, "single"). Which one it is: underlyingType(X).',
    "long": "dlarrays are single, double or logical; subscripts may be double.",
    "int": "dlarrays are single, double or logical; subscripts may be double.",
    "bool": "Whether other than 0: logical(X).",
    "clone": "A dlarray's numbers never change; another name for them: X.copy().",
    "flatten": "Row by row: np.ravel(X). Column by column, as in MATLAB: reshape(X, -1).",
    "ravel": "Row by row: np.ravel(X). Column by column, as in MATLAB: reshape(X, -1).",
    "flat": "Row by row: np.ravel(X).",
    "view": "Row by row: np.reshape(X, size). Column by column, as in MATLAB: reshape(X, size).",
    "resize": "Row by row: np.reshape(X, size). Column by column, as in MATLAB: reshape(X, size).",
    "unsqueeze": "A dimension of size 1: np.expand_dims(X, axis), or stripdims(X)[None].",
    "expand": "It expands by itself; to a size of its own: np.broadcast_to(X, size).",
    "repeat": "Like tiles: repmat(X, counts). Each element: repelem(X, counts), or np.repeat(X, n, axis).",
    "argmax": "Places of the largest: M, I = max(X, [], dim, nargout=2), or np.argmax(X, axis).",
    "argmin": "Places of the smallest: M, I = min(X, [], dim, nargout=2), or np.argmin(X, axis).",
    "argsort": "Places in order: B, I = sort(X, dim, nargout=2), or np.argsort(X, axis).",
    "topk": "In order: B, I = sort(X, dim, \"descend\", nargout=2); then B[:k].",
    "clip": "Between limits: min(max(X, low), high), or np.clip(X, low, high).",
    "clamp": "Between limits: min(max(X, low), high), or np.clip(X, low, high).",
    "norm": "Of vectors: vecnorm(X, p, dim), or np.linalg.norm(X).",
    "nelement": "Number of elements: numel(X), or X.size.",
    "numel": "Number of elements: numel(X), or X.size.",
    "dim": "Number of dimensions: ndims(X), or X.ndim. Their labels: dims(X).",
    "swapaxes": "np.swapaxes(X, axis1, axis2), or permute(X, order).",
    "t": "The transpose: X.T.",
    "mT": "np.swapaxes(X, -1, -2).",
    "H": "The transpose: X.T.",
    "matmul": "X @ Y.",
    "mm": "X @ Y.",
    "bmm": "X @ Y.",
    "add_": "A dlarray's numbers never change: X = X + Y.",
    "sub_": "A dlarray's numbers never change: X = X - Y.",
    "mul_": "A dlarray's numbers never change: X = X * Y.",
    "zero_": "A dlarray's numbers never change: X = zeros(size).",
    "fill": "A dlarray's numbers never change: X[...] = value.",
    "fill_": "A dlarray's numbers never change: X[...] = value.",
    "copy_": "A dlarray's numbers never change: X = Y.",
}  # fmt: skip

_MISSING = "minidl does not have it yet."
_SOLVERS = "The solvers are functions: adamupdate, sgdmupdate, rmspropupdate, dlupdate."
_NETWORK = "Networks are functions of parameters here: a struct of dlarrays, and dlconv, fullyconnect, batchnorm, relu."
_LOOP = "Training is a loop of your own here: dlfeval, dlgradient and a solver such as adamupdate."
FUNCTIONS = {
    "tensor": "Arrays are made by dlarray(X, fmt).", "Tensor": "Arrays are made by dlarray(X, fmt).",
    "array": "Arrays are made by dlarray(X, fmt).", "asarray": "Arrays are made by dlarray(X, fmt).",
    "from_numpy": "Arrays are made by dlarray(X, fmt).", "Variable": "Arrays are made by dlarray(X, fmt).",
    "grad": "Gradients: dlgradient(y, x), in a function that dlfeval calls.",
    "value_and_grad": "Gradients: dlgradient(y, x), in a function that dlfeval calls; it may return y too.",
    "backward": "Gradients: dlgradient(y, x), in a function that dlfeval calls.",
    "no_grad": "Outside of dlfeval nothing is traced; inside, extractdata(X) leaves the trace.",
    "stop_gradient": "stopgradient(X).",
    "jit": "Replay instead of running Python: dlaccelerate(fun).", "compile": "dlaccelerate(fun).",
    "vmap": "Functions work on whole batches: label the dimension B.", "manual_seed": "rng(seed).",
    "seed": "rng(seed).",
    "nn": _NETWORK, "Module": _NETWORK, "Linear": _NETWORK, "Conv2d": _NETWORK, "Sequential": _NETWORK,
    "dlnetwork": _NETWORK, "layerGraph": _NETWORK, "forward": _NETWORK, "predict": _NETWORK, "functional": _NETWORK,
    "trainnet": _LOOP, "trainNetwork": _LOOP, "trainingOptions": _LOOP, "fit": _LOOP,
    "optim": _SOLVERS, "Adam": _SOLVERS, "SGD": _SOLVERS, "RMSprop": _SOLVERS, "adam": _SOLVERS, "sgd": _SOLVERS,
    "conv2d": "dlconv(X, weights, bias).", "conv1d": "dlconv(X, weights, bias).", "conv3d": "dlconv(X, weights, bias).",
    "linear": "fullyconnect(X, weights, bias), or A @ X.", "dense": "fullyconnect(X, weights, bias).",
    "cross_entropy": "crossentropy(softmax(Z), T), T one-hot: onehotencode(labels, 0).",
    "nll_loss": "crossentropy(softmax(Z), T), T one-hot: onehotencode(labels, 0).",
    "mse_loss": "mse(Y, T) halves it; l2loss(Y, T) does not.", "one_hot": "onehotencode(labels, featureDim).",
    "DataLoader": "minibatchqueue(ds, MiniBatchSize=n).", "Dataset": "arrayDatastore(X), combine, transform.",
    "concatenate": "cat(dim, X, Y), or np.concatenate([X, Y], axis).", "concat": "cat(dim, X, Y).",
    "stack": "np.stack([X, Y], axis), or dlarray([X, Y]).", "vstack": "vertcat(X, Y).", "hstack": "horzcat(X, Y).",
    "matmul": "A @ B, mtimes(A, B) or pagemtimes(A, B).", "einsum": _MISSING + " Use @, permute and sum.",
    "arange": "dlarray(np.arange(n), fmt) of floats.", "linspace": "dlarray(np.linspace(a, b, n)).",
    "argmax": "M, I = max(X, [], dim, nargout=2), or np.argmax(X, axis).", "norm": "vecnorm(X, p, dim).",
    "argmin": "M, I = min(X, [], dim, nargout=2), or np.argmin(X, axis).", "clip": "min(max(X, low), high).",
    "clamp": "min(max(X, low), high).", "power_": "power(A, B), or A ** B.", "absolute": "abs(X).",
    "flatten": "reshape(X, -1), or np.ravel(X).", "ravel": "reshape(X, -1), or np.ravel(X).",
    "unsqueeze": "np.expand_dims(X, axis).", "expand_dims": "np.expand_dims(X, axis).", "tile": "repmat(X, counts).",
    "maximum": "max(X, Y).", "minimum": "min(X, Y).", "subtract": "minus(X, Y).", "add": "plus(X, Y).",
    "multiply": "times(X, Y).", "divide": "rdivide(X, Y).", "not": "not_(X).", "and": "and_(X, Y).", "or": "or_(X, Y).",
    "device": "X.device tells; gpuArray(X) and gather(X) move.", "cuda": "gpuArray(X), canUseGPU().",
    "save": "Python's pickle takes dlarrays.", "load": "Python's pickle takes dlarrays.",
    "gpuDevice": "canUseGPU() tells whether there is one.", "inv": _MISSING + " mldivide(A, B) solves A Y = B.",
    "pinv": _MISSING + " mldivide(A, B) solves least squares.", "det": _MISSING, "svd": _MISSING, "eig": _MISSING,
    "qr": _MISSING, "chol": _MISSING, "fft": _MISSING, "ifft": _MISSING, "interp1": _MISSING, "kron": _MISSING,
    "cross": _MISSING, "unique": _MISSING, "find": _MISSING + " X[mask] takes elements.", "embed": _MISSING,
    "dropout": _MISSING + " X * (rand(size(X)) > p) / (1 - p) is one.", "dlquantize": _MISSING, "dlode45": _MISSING,
}  # fmt: skip
FUNCTIONS |= dict.fromkeys([
    "lstm", "gru", "attention", "maxpool", "avgpool", "maxunpool", "dltranspconv", "layernorm", "groupnorm",
    "instancenorm", "crosschannelnorm", "embedding", "ctc", "dljacobian", "dllaplacian", "dldivergence",
    "lbfgsupdate", "indexcrossentropy", "fullyconnected", "elu", "swish", "rmsnorm",
], _MISSING)  # fmt: skip


class Method:
    """A method that dlarrays do not have. Asked for, it says what to write instead; `hasattr` finds nothing.

    A class with a `__getattr__` could say it too, but Python reads all attributes of such a class much more slowly.
    """

    def __init__(self, remedy: str) -> None:
        self._remedy = remedy

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, x: Any, owner: Any = None) -> Any:
        raise PropertyError(f"dlarray: there is no X.{self._name}. {self._remedy}")


def function(name: str, known: Iterable[str]) -> str:
    """What to write instead of a function of minidl that does not exist."""
    return FUNCTIONS.get(name) or _near(name, known)


def door(known: Iterable[str]) -> Callable[[str], Any]:
    """The __getattr__ of a module with these names."""

    def missing(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module 'minidl' has no attribute {name!r}")
        raise PropertyError(f"minidl: there is no {name!r}. {function(name, known)}")

    return missing


def _near(name: str, known: Iterable[str]) -> str:
    meant = nearest(name, known)
    return f"Did you mean {meant}?" if meant else "dir(...) lists what there is."
