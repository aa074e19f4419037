"""Blocks of SIMD vectors as values in Numba code.

Whether Numba's loops become vector instructions is guesswork; here the vectors are explicit. A `Block` holds rows x
columns of vectors, which the compiler keeps in registers as long as they fit. Blocks know + - * / and sqrt, and the
inner loop of a matrix product:

    block = zeros(y, ROWS, 2)
    for i in range(n):
        block = multiply_add(block, x, i, row_offsets, 0, w, i * width, width, None)
    store(block, y, 0, row_offsets, 0, rows, width, False)

makes y[row, :] = sum over i of x[row, i] * w[i, :] for up to ROWS rows and two vectors of columns, near a core's peak.

Arrays are one-dimensional and C-contiguous; places in them are counted in elements and not checked. LLVM translates
vectors that a processor does not have, so this runs everywhere; VECTOR_BYTES and ROWS fit the host.
Source: Goto & van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008).
"""

import math
import operator

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload, register_model


def _registers() -> tuple[int, int]:
    """Bytes of a vector register of Numba's target, and the number of such registers."""
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if "+avx512f" in features:
        return 64, 32
    if "+avx" in features:
        return 32, 16
    return 16, 32 if "+neon" in features else 16


VECTOR_BYTES, _count = _registers()
ROWS = (_count - 3) // 2  # two columns of accumulators, two vectors of w, one of x

_int1, _int32, _int64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


class Block(types.Type):
    """Numba type: rows x columns vectors of `dtype`, each of VECTOR_BYTES."""

    def __init__(self, dtype, rows, columns):
        self.dtype, self.rows, self.columns = dtype, rows, columns
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(f"Block({dtype}, {rows}, {columns})")

    @property
    def scalar(self):
        return ir.FloatType() if self.dtype.bitwidth == 32 else ir.DoubleType()

    @property
    def vector(self):
        return ir.VectorType(self.scalar, self.lanes)


@register_model(Block)
class _BlockModel(models.PrimitiveModel):
    def __init__(self, manager, block):
        super().__init__(manager, block, ir.ArrayType(block.vector, block.rows * block.columns))


def _address(context, builder, array_type, array, index):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _splat(builder, value, lanes):
    """A vector with `value` in every lane."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = ir.Constant(ir.VectorType(_int32, lanes), [0] * lanes)
    return builder.shuffle_vector(builder.insert_element(empty, value, _int32(0)), empty, first)


def _mask(builder, block, column, count):
    """True in the lanes of this column that lie below `count`."""
    first = column * block.lanes
    numbers = ir.Constant(ir.VectorType(_int64, block.lanes), list(range(first, first + block.lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, count, block.lanes))


def _intrinsic(builder, block, name, result, arguments, suffix=""):
    name = f"llvm.{name}.v{block.lanes}f{block.dtype.bitwidth}{suffix}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _load(builder, block, address, column, count):
    """The vector at `address` + column; lanes from `count` on are 0 and not read."""
    mask_type = ir.VectorType(_int1, block.lanes)
    arguments = [block.vector.as_pointer(), _int32, mask_type, block.vector]
    load = _intrinsic(builder, block, "masked.load", block.vector, arguments, ".p0")
    address = builder.bitcast(builder.gep(address, [_int64(column * block.lanes)]), block.vector.as_pointer())
    align, mask = _int32(block.dtype.bitwidth // 8), _mask(builder, block, column, count)
    return builder.call(load, [address, align, mask, ir.Constant(block.vector, None)])


def _store(builder, block, vector, address, column, count):
    """Write the lanes below `count` to `address` + column."""
    arguments = [block.vector, block.vector.as_pointer(), _int32, ir.VectorType(_int1, block.lanes)]
    store = _intrinsic(builder, block, "masked.store", ir.VoidType(), arguments, ".p0")
    address = builder.bitcast(builder.gep(address, [_int64(column * block.lanes)]), block.vector.as_pointer())
    align, mask = _int32(block.dtype.bitwidth // 8), _mask(builder, block, column, count)
    builder.call(store, [vector, address, align, mask])


@intrinsic(prefer_literal=True)
def lanes(typing, array):
    """Number of elements of `array` in one vector."""
    number = VECTOR_BYTES * 8 // array.dtype.bitwidth
    return types.int64(array), lambda context, builder, signature, arguments: _int64(number)


def _operator(name):
    """Intrinsic for an operator of LLVM between two blocks of one type, element by element."""

    @intrinsic
    def operate(typing, a, b):
        def generate(context, builder, signature, arguments):
            value = ir.Constant(context.get_value_type(a), None)
            for place in range(a.rows * a.columns):
                pair = [builder.extract_value(argument, place) for argument in arguments]
                value = builder.insert_value(value, getattr(builder, name)(*pair, flags=("contract",)), place)
            return value

        return a(a, b), generate

    return operate


def _overload(python_operator, name):
    operate = _operator(name)

    @overload(python_operator)
    def implement(a, b):
        if isinstance(a, Block) and a == b:
            return lambda a, b: operate(a, b)


_overload(operator.add, "fadd")
_overload(operator.sub, "fsub")
_overload(operator.mul, "fmul")
_overload(operator.truediv, "fdiv")


@intrinsic
def _root(typing, block):
    def generate(context, builder, signature, arguments):
        value = arguments[0]
        root = _intrinsic(builder, block, "sqrt", block.vector, [block.vector])
        for place in range(block.rows * block.columns):
            value = builder.insert_value(value, builder.call(root, [builder.extract_value(value, place)]), place)
        return value

    return block(block), generate


@overload(math.sqrt)
def _sqrt(block):
    if isinstance(block, Block):
        return lambda block: _root(block)


@intrinsic
def fill(typing, like, value):
    """A vector with `value` in every lane, of the dtype of array `like`."""
    block = Block(like.dtype, 1, 1)

    def generate(context, builder, signature, arguments):
        vector = _splat(builder, context.cast(builder, arguments[1], value, like.dtype), block.lanes)
        return builder.insert_value(ir.Constant(context.get_value_type(block), None), vector, 0)

    return block(like, value), generate


@intrinsic
def load(typing, x, start, count):
    """The vector x[start : start + lanes], a block of one row and column; lanes from `count` on are 0 and not read."""
    block = Block(x.dtype, 1, 1)

    def generate(context, builder, signature, arguments):
        array, start, count = arguments
        vector = _load(builder, block, _address(context, builder, x, array, start), 0, count)
        return builder.insert_value(ir.Constant(context.get_value_type(block), None), vector, 0)

    return block(x, types.int64, types.int64), generate


@intrinsic
def save(typing, block, y, start, count):
    """y[start : start + count] = the first lanes of a vector."""

    def generate(context, builder, signature, arguments):
        value, array, start, count = arguments
        _store(builder, block, builder.extract_value(value, 0), _address(context, builder, y, array, start), 0, count)
        return context.get_dummy_value()

    return types.void(block, y, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def zeros(typing, like, rows, columns):
    """A block of zeros of the dtype of array `like`; rows and columns are literals."""
    block = Block(like.dtype, rows.literal_value, columns.literal_value)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(block), None)

    return block(like, rows, columns), generate


@intrinsic
def multiply_add(typing, block, x, x_start, rows, first, w, w_start, count, each):
    """block[r, c] + x[x_start + rows[first + r]] * w[w_start + c]; columns c from `count` on are left out.

    Where `each` is True instead of None (the compiler knows it by the type), x has a value for each column, too:
    block[r, c] + x[x_start + rows[first + r] + c] * w[w_start + c].
    """

    def generate(context, builder, signature, arguments):
        value, x_array, x_start, rows_array, first, w_array, w_start, count, _ = arguments
        fma = _intrinsic(builder, block, "fmuladd", block.vector, [block.vector] * 3)
        x_address = _address(context, builder, x, x_array, x_start)
        w_address = _address(context, builder, w, w_array, w_start)
        row_address = _address(context, builder, rows, rows_array, first)
        factors = [_load(builder, block, w_address, column, count) for column in range(block.columns)]
        for row in range(block.rows):
            here = builder.gep(x_address, [builder.load(builder.gep(row_address, [_int64(row)]))])
            if each == types.none:
                values = [_splat(builder, builder.load(here), block.lanes)] * block.columns
            else:
                values = [_load(builder, block, here, column, count) for column in range(block.columns)]
            for column in range(block.columns):
                place = row * block.columns + column
                total = builder.call(fma, [values[column], factors[column], builder.extract_value(value, place)])
                value = builder.insert_value(value, total, place)
        return value

    index = types.int64
    return block(block, x, index, rows, index, w, index, index, each), generate


@intrinsic
def store(typing, block, y, y_start, rows, first, stop, count, add):
    """y[y_start + rows[first + r] + c] = block[r, c], or += where `add`, for first + r < stop and c < count."""

    def generate(context, builder, signature, arguments):
        value, y_array, y_start, rows_array, first, stop, count, add = arguments
        y_address = _address(context, builder, y, y_array, y_start)
        row_address = _address(context, builder, rows, rows_array, first)
        height = builder.sub(stop, first)
        for row in range(block.rows):
            with builder.if_then(builder.icmp_signed("<", _int64(row), height)):
                here = builder.gep(y_address, [builder.load(builder.gep(row_address, [_int64(row)]))])
                for column in range(block.columns):
                    vector = builder.extract_value(value, row * block.columns + column)
                    old = _load(builder, block, here, column, builder.select(add, count, _int64(0)))
                    _store(builder, block, builder.fadd(vector, old), here, column, count)
        return context.get_dummy_value()

    index = types.int64
    return types.void(block, y, index, rows, index, index, index, types.boolean), generate
