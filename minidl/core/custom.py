"""Ops of the user's own: what can go wrong in declaring and computing them is found here, and explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minidl import backends
from minidl.core.errors import DTypeError, MinidlError, OptionError, ShapeError
from minidl.core.labels import describe
from minidl.core.spec import Spec

if TYPE_CHECKING:
    from minidl.core.op import Op

_UNWRITTEN = 0xFF  # in all bytes of a number: a NaN that no computation makes


def check_declared(op: Op) -> None:
    """Raise OptionError or ShapeError if the facts of an op do not fit together."""
    who = f"op: {op.name}"
    kind = op.kind_name
    if kind not in ("map", "kernel"):
        raise OptionError(f"{who} is declared as {kind.upper()}. Ops of yours are MAP or KERNEL.")
    if not re.fullmatch("[fba]*->[fba]+", f"{op.input_types}->{op.output_types}"):
        raise OptionError(f'{who}: types are letters f, b, a for the inputs, "->" and those of the results: "ff->f".')
    if kind == "kernel" and op.text is not None:
        raise OptionError(f"{who}: a text is about one number at a time. Declare it with @op(MAP, text=...).")
    if kind == "map" and (op.text is None) == (op.body is None):
        raise OptionError(f"{who}: a MAP op has either a text or a body. Give text=..., or write the function's code.")
    if op.text is not None:
        _check_text(who, op.text, op.arity or 0)


def _check_text(who: str, text: str, arity: int) -> None:
    from minidl.kernels.native.words import is_supported

    if "**" in text or re.search(r"\b(not|and|or|if)\b", text) or not is_supported(text):
        raise OptionError(
            f"{who}: the text {text!r} cannot be read. It may use + - * /, comparisons of two, pow(a, b), "
            "where(a, b, c), maximum, exp, log, tanh and their kind; it stands for C++ too, so no ** and no not."
        )
    places = sorted({int(n) for n in re.findall(r"\{(\d+)\}", text)})
    if places != list(range(arity)):
        raise ShapeError(f"{who} has {arity} operands, its text uses {places}. Write {{0}}, {{1}} ... for them.")


def check_params(op: Op, params: dict[str, Any]) -> None:
    """Raise DTypeError for a keyword that cannot be part of a recording's key."""
    for name, value in params.items():
        try:
            hash(value)
        except TypeError:
            raise DTypeError(
                f"{op.name}: {name} is a {type(value).__name__}. Arrays are given by position; what is given by "
                "keyword is a number, text or tuple."
            ) from None


def placed(op: Op, found: Any, specs: Sequence[Any]) -> tuple[Spec, ...]:
    """What an infer rule gives, on the device where the inputs are."""
    made = (found,) if isinstance(found, Spec) else tuple(found) if isinstance(found, (tuple, list)) else ()
    if not made or not all(isinstance(spec, Spec) for spec in made):
        raise DTypeError(f"{op.name}: infer gives a Spec, or a tuple of them; got {found!r}. Use Spec(shape, x.dtype).")
    device = next((spec.device for spec in specs if isinstance(spec, Spec)), "cpu")
    return tuple([Spec(tuple(map(int, spec.shape)), np.dtype(spec.dtype), device) for spec in made])


def check_made(op: Op, made: Sequence[Any], specs: Sequence[Spec]) -> None:
    """Raise ShapeError if a body gives something else than infer says. made: Values, or what else the body gave."""
    found = [getattr(y, "spec", None) for y in made]
    if found != list(specs):
        names = [str(spec) if spec else type(y).__name__ for y, spec in zip(made, found)]
        raise ShapeError(
            f"{op.name}: its body gives {', '.join(names)}; infer says {', '.join(map(str, specs))}. Declare "
            f"@{op.name}.infer, the rule that gives the Spec(shape, dtype) of each result."
        )


def check_gradients(op: Op, inputs: Sequence[Any], found: Sequence[Any]) -> None:
    """Raise ShapeError unless vjp gives a gradient (or None) for each input, of its size."""
    if len(found) != len(inputs):
        raise ShapeError(
            f"{op.name}: its vjp gives {len(found)} gradients for {len(inputs)} inputs. Give one for each input, as a "
            "tuple; None stands for zero."
        )
    for i, (x, g) in enumerate(zip(inputs, found)):
        shape, wanted = getattr(g, "shape", None), getattr(x, "shape", None)
        if g is not None and wanted is not None and shape != wanted:
            raise ShapeError(f"{op.name}: its vjp gives {describe(shape or ())} for input {i}, which is "
                             f"{describe(wanted)}. A gradient has the size of its input.")  # fmt: skip


class Kernel:
    """A user's kernel as backends call it. Its first run on the CPU shows what it does not write, or must not write."""

    def __init__(self, op: Op, device: str, function: Callable[..., Any]) -> None:
        self.op, self.device, self.function = op, device, function
        self._is_tried = device != "cpu"

    def __call__(self, *arrays: Any, **params: Any) -> None:
        arity = self.op.arity
        count = len(self.op.output_types) if arity is None else len(arrays) - arity
        if not any([y.size for y in arrays[:count]]):
            return  # nothing to fill; a grid without blocks would be an error
        arrays = tuple([_dense(x) for x in arrays])
        if not self._is_tried:
            self._try(arrays[:count], arrays[count:], params)
            self._is_tried = True
        else:
            self._run(arrays, params)

    def _run(self, arrays: tuple[Any, ...], params: dict[str, Any]) -> None:
        made = self.function(*arrays, **params)
        if made is not None:
            raise DTypeError(
                f"{self.op.name}: its {self.device} kernel returned {type(made).__name__}. A kernel fills the outputs, "
                "which come before the inputs, and returns nothing: y[...] = result."
            )

    def _try(self, outputs: tuple[Any, ...], inputs: tuple[Any, ...], params: dict[str, Any]) -> None:
        for y in outputs:
            _bytes(y)[...] = _UNWRITTEN
        arrays = [x for x in inputs if isinstance(x, np.ndarray)]
        before = [x.tobytes() for x in arrays]
        self._run((*outputs, *inputs), params)
        who = f"{self.op.name}: its cpu kernel"
        for i, y in enumerate(outputs):
            left = np.count_nonzero((_bytes(y) == _UNWRITTEN).all(-1))
            if left:
                raise MinidlError(
                    f"{who} left {left} of the {y.size} elements of output {i} as they were, or added to what was "
                    "there. Outputs come empty: write each element, y[...] = result (y = result would only rename)."
                )
        if [x.tobytes() for x in arrays] != before:
            raise MinidlError(f"{who} wrote to its inputs. They stay as they are: work on a copy, x.copy().")


def _dense(x: Any) -> Any:
    """An array as kernels get it: in C order, on the CPU aligned and writeable too. Outputs are so already."""
    if isinstance(x, np.ndarray):
        return x if x.flags.carray else np.require(x, requirements=["C", "A", "W"])
    return backends.gpu().dense(x) if hasattr(x, "strides") else x


def _bytes(x: np.ndarray) -> np.ndarray:
    """The bytes of an array in C order, a row for each element."""
    return x.reshape(-1).view(np.uint8).reshape(x.size, x.itemsize)
