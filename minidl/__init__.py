"""minidl: MATLAB's custom training loops in Python, on NumPy, Numba and CuPy.

    from minidl import dlarray, dlfeval, dlgradient, dlaccelerate

`from minidl import *` hides seven of Python's functions: abs, all, any, max, min, round and sum. They serve plain
Python values as Python's do (see `minidl.ops.python`): max(3, 5), sum([1, 2]), any(x > 0 for x in values).
"""

from pathlib import Path

if not (Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(Path(__file__).parents[1]))  # in a checkout kernels/ lies beside minidl/

from minidl import data, ops, train
from minidl.accelerate import AcceleratedFunction, clearCache, dlaccelerate
from minidl.autodiff import dlfeval, dlgradient
from minidl.core import elsewhere
from minidl.core.dlarray import DLArray, dlarray, isdlarray
from minidl.core.errors import (
    AccelerationWarning,
    DataError,
    DeviceError,
    DeviceMemoryError,
    DTypeError,
    EmptyDataError,
    LabelError,
    MinidlError,
    NonFiniteWarning,
    OptionError,
    PropertyError,
    RetraceWarning,
    ShapeError,
    SingularError,
    SubscriptError,
    TraceError,
    TraceWarning,
)
from minidl.core.op import KERNEL, MAP, op
from minidl.core.precision import Precision
from minidl.core.random import rng
from minidl.core.spec import Spec
from minidl.core.struct import FieldError, struct
from minidl.data import *  # noqa: F403
from minidl.ops import *  # noqa: F403
from minidl.train import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "AcceleratedFunction", "AccelerationWarning", "DLArray", "DTypeError", "DataError", "DeviceError",
    "DeviceMemoryError", "EmptyDataError", "FieldError", "KERNEL", "LabelError", "MAP", "MinidlError",
    "NonFiniteWarning", "OptionError", "Precision", "PropertyError", "RetraceWarning", "ShapeError",
    "SingularError", "Spec", "SubscriptError",
    "TraceError", "TraceWarning",
    "clearCache", "dlaccelerate", "dlarray", "dlfeval", "dlgradient", "isdlarray", "op", "rng", "struct",
]  # fmt: skip
__all__ += data.__all__
__all__ += ops.__all__
__all__ += train.__all__
__getattr__ = elsewhere.door(__all__)  # names of other libraries: what is written here instead
