"""The operations of a jaxpr on LLVM scalars, and on NumPy arrays of them: constants are computed here, the rest is emitted."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

I32, I64, BOOL = ir.IntType(32), ir.IntType(64), ir.IntType(1)
Value = Any
"""An LLVM scalar; llvmlite's builder methods are typed too loosely to say so."""


def type_of(dtype: Any) -> ir.IntType:
    """The LLVM type of an element of this dtype, ``int32``, ``uint32`` or a truth value."""
    return BOOL if dtype == np.bool_ else I32


def as_constant(value: Any, dtype: Any) -> ir.Constant:
    """The constant of a number."""
    return ir.Constant(type_of(dtype), int(value) if dtype == np.bool_ else int(np.int64(value)) & 0xFFFFFFFF)


def elements(value: np.ndarray, dtype: Any) -> np.ndarray:
    """An array of numbers as one of constants."""
    result = np.empty(value.shape, object)
    for place in np.ndindex(*value.shape):
        result[place] = as_constant(value[place], np.dtype(dtype))
    return result


def all_equal(values: Sequence[Value]) -> bool:
    """Whether all are the same constant."""
    return all(isinstance(value, ir.Constant) and value.constant == values[0].constant for value in values)


def is_constant(value: Value, constant: int) -> bool:
    """Whether a value is this constant, -1 for all bits set."""
    return isinstance(value, ir.Constant) and value.constant == constant & (1 if value.type == BOOL else 0xFFFFFFFF)


def number_of(constant: Any) -> int:
    """The value of a constant, as a signed one if it is not a truth value."""
    value = int(constant.constant)
    return value & 1 if constant.type == BOOL else (value + 0x80000000 & 0xFFFFFFFF) - 0x80000000


def scalar(name: str, b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    """One operation on scalars; computed here if all of them are constants."""
    if name in _FOLDED and dtype_in != np.uint32 and all(isinstance(arg, ir.Constant) for arg in args):
        value = _FOLDED[name](*map(number_of, args))
        return as_constant(bool(value) if dtype_out == np.bool_ else value, dtype_out)
    return SCALARS[name](b, args, dtype_in, dtype_out, params)


def _and(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    for one, other in (args, args[::-1]):
        if is_constant(one, 0) or is_constant(other, -1):
            return one
    return b.and_(*args)


def _or(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    for one, other in (args, args[::-1]):
        if is_constant(one, -1) or is_constant(other, 0):
            return one
    return b.or_(*args)


def _not(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    return as_constant(~args[0].constant & 1, np.bool_) if isinstance(args[0], ir.Constant) and args[0].type == BOOL else b.not_(args[0])


def _select(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    which, no, yes = args
    if isinstance(which, ir.Constant):
        return yes if which.constant else no
    return yes if yes is no else b.select(which, yes, no)


def _add(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    for one, other in (args, args[::-1]):
        if is_constant(one, 0):
            return other
    return b.add(*args)


def _mul(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    for one, other in (args, args[::-1]):
        if is_constant(one, 0) or is_constant(other, 1):
            return one
    return b.mul(*args)


def _binary(operation: str) -> Callable[..., Value]:
    return lambda b, args, dtype_in, dtype_out, params: getattr(b, operation)(*args)


def _compare(operator: str) -> Callable[..., Value]:
    def emit(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
        if operator in "==!=" and all(isinstance(arg, ir.Constant) for arg in args):
            return as_constant((args[0].constant == args[1].constant) == (operator == "=="), np.bool_)
        return (b.icmp_signed if dtype_in == np.int32 else b.icmp_unsigned)(operator, *args)

    return emit


def _extreme(operator: str) -> Callable[..., Value]:
    def emit(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
        compare = b.icmp_signed if dtype_in == np.int32 else b.icmp_unsigned
        return b.select(compare(operator, *args), *args)

    return emit


def _convert(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    if dtype_in == dtype_out or (dtype_in != np.bool_ and dtype_out != np.bool_):
        return args[0]
    return b.zext(args[0], I32) if dtype_in == np.bool_ else b.icmp_signed("!=", args[0], I32(0))


def _division(signed: str, unsigned: str) -> Callable[..., Value]:
    return lambda b, args, dtype_in, dtype_out, params: getattr(b, signed if dtype_in == np.int32 else unsigned)(*args)


def _clz(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    return b.ctlz(args[0], BOOL(0))


def _sign(b: Any, args: list[Value], dtype_in: Any, dtype_out: Any, params: Any) -> Value:
    is_negative, is_zero = b.icmp_signed("<", args[0], I32(0)), b.icmp_signed("==", args[0], I32(0))
    return b.select(is_negative, I32(0xFFFFFFFF), b.select(is_zero, I32(0), I32(1)))


SCALARS: dict[str, Callable[..., Value]] = {
    "add": _add, "sub": _binary("sub"), "mul": _mul, "and": _and, "or": _or, "xor": _binary("xor"),
    "not": _not, "neg": _binary("neg"), "shift_left": _binary("shl"), "shift_right_logical": _binary("lshr"),
    "shift_right_arithmetic": _binary("ashr"), "div": _division("sdiv", "udiv"), "rem": _division("srem", "urem"), "clz": _clz, "sign": _sign,
    "eq": _compare("=="), "ne": _compare("!="), "lt": _compare("<"), "le": _compare("<="), "gt": _compare(">"), "ge": _compare(">="),
    "max": _extreme(">"), "min": _extreme("<"), "convert_element_type": _convert,
    "select_n": _select,
    "clamp": lambda b, args, dtype_in, dtype_out, params: _extreme("<")(
        b, [_extreme(">")(b, args[:2], dtype_out, dtype_out, {}), args[2]], dtype_out, dtype_out, {}
    ),
}  # fmt: skip
_FOLDED: dict[str, Callable[..., int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "max": max, "min": min,
    "convert_element_type": lambda value: value, "shift_right_arithmetic": lambda value, count: value >> min(max(count, 0), 31),
}  # fmt: skip
"""Operations on ``int32`` and truth values of which constants are computed while translating."""
REDUCTIONS = {"reduce_sum": "add", "reduce_or": "or", "reduce_and": "and", "reduce_max": "max", "reduce_min": "min"}


def _broadcast(args: list[np.ndarray], params: Any, out: Any) -> np.ndarray:
    shape = [1] * len(out.shape)
    for axis, dimension in enumerate(params["broadcast_dimensions"]):
        shape[dimension] = args[0].shape[axis]
    return np.broadcast_to(args[0].reshape(shape), out.shape)


def _slice(args: list[np.ndarray], params: Any, out: Any) -> np.ndarray:
    strides = params["strides"] or (1,) * args[0].ndim
    return args[0][tuple(slice(a, b, c) for a, b, c in zip(params["start_indices"], params["limit_indices"], strides, strict=True))]


def _iota(args: list[np.ndarray], params: Any, out: Any) -> np.ndarray:
    shape = [1] * len(out.shape)
    shape[params["dimension"]] = out.shape[params["dimension"]]
    return elements(np.broadcast_to(np.arange(out.shape[params["dimension"]]).reshape(shape), out.shape), out.dtype)


SHAPES: dict[str, Callable[[list[np.ndarray], Any, Any], np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda args, params, out: args[0].reshape(out.shape),
    "squeeze": lambda args, params, out: args[0].reshape(out.shape),
    "expand_dims": lambda args, params, out: args[0].reshape(out.shape),
    "transpose": lambda args, params, out: args[0].transpose(params["permutation"]),
    "concatenate": lambda args, params, out: np.concatenate(args, params["dimension"]),
    "stack": lambda args, params, out: np.stack(args, params["axis"]),
    "slice": _slice,
    "iota": _iota,
    "copy": lambda args, params, out: args[0],
    "stop_gradient": lambda args, params, out: args[0],
}
