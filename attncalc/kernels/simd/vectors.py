"""Vectors of 16 float32 for Numba: explicit SIMD, independent of the compiler's vectorization.

A value of type `Vector` has 16 lanes. LLVM keeps it in one register with AVX-512, two with AVX2,
four with NEON. All arrays are C-contiguous float32 with two dimensions, addressed by row and
column; bounds are not checked.

| function                | does                                    |
|-------------------------|-----------------------------------------|
| load(a, i, k)           | a[i, k : k + 16]                        |
| store(a, i, k, v)       | a[i, k : k + 16] = v                    |
| fill(s)                 | s in all lanes                          |
| plus, minus, times, over| lane by lane                            |
| fma(x, y, z)            | x y + z                                 |
| clip(x, low, high)      | lane by lane                            |
| total(x)                | sum of the lanes                        |
| exponential(x)          | e^x, for x from -87 to 87               |

`tile(rows, vectors)` makes the inner part of a matrix product; see its docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from attncalc.kernels.simd.lanes import LANES

_LANES = ir.VectorType(ir.FloatType(), LANES)
# products may be fused, sums reordered; NaN and infinity keep their meaning
_ANY_ORDER = ("reassoc", "contract", "nsz", "arcp")
_INT32 = ir.IntType(32)


Function = Callable[..., Any]


def _inline(generator: Function) -> Function:
    """Make a function for compiled code from one that writes its instructions."""
    return intrinsic(generator)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Vector16f")


Vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, _LANES)


def _address(context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any) -> Any:
    """Pointer to a[row, column]."""
    struct = context.make_array(array_type)(context, builder, array)
    length = cgutils.unpack_tuple(builder, struct.shape)[-1]
    return builder.gep(struct.data, [builder.add(builder.mul(row, length), column)])


def _broadcast(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_LANES, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
    zeros = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(single, undefined, zeros)


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(builder.bitcast(pointer, _LANES.as_pointer()), align=4)


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, _LANES.as_pointer()), align=4)


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return builder.fadd(builder.fmul(x, y, flags=_ANY_ORDER), z, flags=_ANY_ORDER)


@_inline
def load(typing: Any, array: Any, row: Any, column: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _load(builder, _address(context, builder, signature.args[0], *values))

    return Vector(array, types.intp, types.intp), code


@_inline
def store(typing: Any, array: Any, row: Any, column: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], *values[:3])
        _store(builder, values[3], pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), code


@_inline
def fill(typing: Any, scalar: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _broadcast(builder, values[0])

    return Vector(types.float32), code


def _two(operation: str) -> Function:
    @_inline
    def apply(typing: Any, x: Any, y: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return getattr(builder, operation)(*values, flags=_ANY_ORDER)

        return Vector(Vector, Vector), code

    return apply


plus, minus, times, over = _two("fadd"), _two("fsub"), _two("fmul"), _two("fdiv")


@_inline
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _multiply_add(builder, *values)

    return Vector(Vector, Vector, Vector), code


@_inline
def clip(typing: Any, x: Any, low: Any, high: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value, least, most = values
        value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
        return builder.select(builder.fcmp_ordered(">", value, most), most, value)

    return Vector(Vector, Vector, Vector), code


@_inline
def total(typing: Any, x: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _LANES])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        zero = ir.Constant(ir.FloatType(), 0.0)
        return builder.call(reduce, [zero, values[0]], fastmath=_ANY_ORDER)

    return types.float32(Vector), code


_LOG2_E = 1.44269504088896341
# ln 2 in two parts; the first has few digits, so that its product with a whole number is exact
_LN2 = (0.693359375, -2.12194440e-4)
# e^r = 1 + r + r² P(r) for |r| <= ln 2 / 2 (Cephes, expf)
_EXPONENTIAL = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)


@_inline
def exponential(typing: Any, x: Any) -> Any:
    """e^x as 2^k e^r with whole k, accurate to the last digit of float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        (value,) = values

        def many(number: float) -> Any:
            return ir.Constant(_LANES, [number] * LANES)

        def intrinsic_of(name: str, *arguments: Any) -> Any:
            kind = ir.FunctionType(_LANES, [_LANES] * len(arguments))
            full = f"llvm.{name}.v{LANES}f32"
            function = cgutils.get_or_insert_function(builder.module, kind, full)
            return builder.call(function, arguments)

        # unlike everywhere else, these operations must not be reordered; "fma" would be a call of a
        # function where a processor has no such instruction
        k = intrinsic_of("nearbyint", builder.fmul(value, many(_LOG2_E)))
        r = value
        for part in _LN2:
            r = intrinsic_of("fmuladd", k, many(-part), r)
        p = many(_EXPONENTIAL[0])
        for coefficient in _EXPONENTIAL[1:]:
            p = intrinsic_of("fmuladd", p, r, many(coefficient))
        p = intrinsic_of("fmuladd", p, builder.fmul(r, r), builder.fadd(r, many(1.0)))
        whole = ir.VectorType(_INT32, LANES)
        shift = ir.Constant(whole, [23] * LANES)  # bit position of the exponent of a float32
        steps = builder.shl(builder.fptosi(k, whole), shift)
        return builder.bitcast(builder.add(builder.bitcast(p, whole), steps), _LANES)

    return Vector(Vector), code


def tile(rows: int, vectors: int) -> Function:
    """Make a tile of out += x w, whose `rows` times 16 `vectors` sums stay in registers.

    Returns:
        f(x, x_column, w, out, out_column, row, column). It adds the product of
        x[row : row + rows, x_column : x_column + K] and w[:, column : + 16 vectors] to
        out[row : row + rows, out_column + column : + 16 vectors]. w [K, M] has the order of
        `attncalc.kernels.simd.lanes.in_blocks`.
    """

    @_inline
    def multiply(
        typing: Any, x: Any, x_column: Any, w: Any, out: Any, out_column: Any, row: Any, column: Any
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            x_type, _, w_type, out_type = signature.args[:4]
            x_, x_column_, w_, out_, out_column_, row_, column_ = values

            def offset(n: int) -> Any:
                return ir.Constant(row_.type, n)

            def out_pointer(r: int, v: int) -> Any:
                at = builder.add(builder.add(out_column_, column_), offset(LANES * v))
                row_r = builder.add(row_, offset(r))
                return _address(context, builder, out_type, out_, row_r, at)

            inner = context.make_array(w_type)(context, builder, w_)
            n_inner = cgutils.unpack_tuple(builder, inner.shape)[0]

            def block(v: int) -> Any:
                begin = builder.add(column_, offset(LANES * v))
                return builder.gep(inner.data, [builder.mul(begin, n_inner)])

            blocks = [block(v) for v in range(vectors)]
            sums = [
                [cgutils.alloca_once(builder, _LANES) for _ in range(vectors)] for _ in range(rows)
            ]
            for r in range(rows):
                for v in range(vectors):
                    builder.store(_load(builder, out_pointer(r, v)), sums[r][v])
            with cgutils.for_range(builder, n_inner) as loop:
                at_row = builder.mul(loop.index, offset(LANES))
                weights = [_load(builder, builder.gep(begin, [at_row])) for begin in blocks]
                for r in range(rows):
                    row_r = builder.add(row_, offset(r))
                    at = builder.add(x_column_, loop.index)
                    scalar = builder.load(_address(context, builder, x_type, x_, row_r, at))
                    many = _broadcast(builder, scalar)
                    for v in range(vectors):
                        old = builder.load(sums[r][v])
                        builder.store(_multiply_add(builder, many, weights[v], old), sums[r][v])
            for r in range(rows):
                for v in range(vectors):
                    _store(builder, builder.load(sums[r][v]), out_pointer(r, v))
            return context.get_dummy_value()

        index = types.intp
        return types.void(x, index, w, out, index, index, index), code

    return multiply
