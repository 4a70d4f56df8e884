"""The translation of a jaxpr to LLVM: values are emitted on the ways that use them, and mean what they mean in JAX."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from lufjax.backends import native
from lufjax.backends.lowering import Lowering, emit_writes
from lufjax.backends.primitives import pick_p, read_p, split_p

ARRAYS = {"x": ((4,), np.dtype(np.int32)), "y": ((4,), np.dtype(np.int32))}


def read(array: str) -> jax.Array:
    return read_p.bind(array=array, pattern=(), size=(4,), dtype=np.dtype(np.int32))


def translated(result: Callable[[], jax.Array]) -> tuple[Any, str]:
    """The module of ``x[3] = result()``, and the text of its first block before it is optimised."""
    closed = jax.make_jaxpr(lambda: [jnp.int32(3), result(), jnp.bool_(True)])()
    module = ir.Module(name="test")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [native.POINTER.as_pointer()]), name="kernel")
    lowering = Lowering(ir.IRBuilder(function.append_basic_block("entry")), native.PointerTable(function.args[0], {"x": 0, "y": 1}))

    def finish(values: list[np.ndarray]) -> None:
        emit_writes(lowering, values, [("x", False, (None,))], closed, ARRAYS)
        lowering.builder.ret_void()

    lowering.run(closed, finish)
    return module, str(function.blocks[0])


def run(module: Any, x: list[int], y: list[int]) -> int:
    target = native.host()
    engine = llvm.create_mcjit_compiler(native.optimised(module, target), target)
    engine.finalize_object()
    arrays = [np.array(values, np.int32) for values in (x, y)]
    table = (ctypes.c_void_p * 2)(*(array.ctypes.data for array in arrays))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("kernel"))(ctypes.addressof(table))
    return int(arrays[0][3])


def chosen() -> jax.Array:
    """Of ``y`` where ``x[0]`` is 1, else of ``x``: a choice, AND, OR, a function that is called, and a reduction over what one way needs."""
    x = read("x")
    is_one = split_p.bind(x[0] == 1)
    y = read("y")
    both = (is_one & (y[0] > 2)) | (~is_one & (x[1] > 2))
    return jnp.where(is_one, jax.jit(lambda values: values.sum())(y), x[1] - x[2]) * 2 + both.astype(jnp.int32)


@pytest.mark.parametrize(("x", "result"), [([1, 5, 7, 0], 2 * (3 + 4 + 5 + 6) + 1), ([0, 5, 7, 0], 2 * (5 - 7) + 1), ([0, 2, 7, 0], 2 * (2 - 7))])
def test_either_way_means_what_it_says(x: list[int], result: int) -> None:
    assert run(translated(chosen)[0], x, [3, 4, 5, 6]) == result


def test_a_value_is_emitted_where_it_is_needed() -> None:
    module, entry = translated(chosen)
    loads = [str(block).count("= load i32,") for block in module.get_global("kernel").blocks]
    assert entry.count("= load i32,") == 4  # x, for the condition
    assert sorted(loads) == [0, 4, 4]  # y, on the one way that uses it


def test_a_table_that_several_pick_from_is_written_once() -> None:
    def picked() -> jax.Array:
        x, y = read("x"), read("y")
        one, other = (pick_p.bind(y, x[place : place + 1], inside=False) for place in (0, 1))
        return 10 * one[0] + other[0]

    module, _ = translated(picked)
    assert str(module).count("= alloca") == 1
    assert [run(module, [2, last, 0, 0], [3, 4, 5, 6]) for last in (1, 4, -1)] == [54, 50, 50]


def test_what_is_read_before_a_write_is_what_was_there() -> None:
    def swapped() -> jax.Array:
        x, y = read("x"), read("y")
        return jnp.where(split_p.bind(x[3] > 0), x[3] + y[3], y[3])

    module, _ = translated(swapped)
    assert [run(module, [0, 0, 0, n], [0, 0, 0, 5]) for n in (2, 0)] == [7, 5]
