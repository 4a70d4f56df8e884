"""Native code of the search: the phases of a machine, and for each form of rows and keys the keys and the loop over a batch.

The phase kernels and the key are those that JAX traces (:mod:`lufjax.backends.native`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from llvmlite import ir

from lufjax.backends import native
from lufjax.backends.lowering import Lowering
from lufjax.backends.native import machine_code
from lufjax.backends.operations import I32, I64, all_equal
from lufjax.backends.primitives import read_p
from lufjax.params import MachineShape
from lufjax.search.expander import Compiled, words_of
from lufjax.search.hashing import BYTES
from lufjax.search.keys import LARGEST, SMALLEST
from lufjax.search.native_loop import KEY, SUCCESSORS, emit_successors
from lufjax.state import MachineState

I8 = ir.IntType(8)
FREE = -(2**31)
"""Of an element of the state that is not fixed."""
Key = Callable[[MachineState], jax.Array]
Arrays = dict[str, tuple[tuple[int, ...], Any]]


class SearchProgram(NamedTuple):
    """The phases of a machine. ``engine`` has to live as long as the function at ``run_lane`` (an address) is called."""

    engine: Any
    run_lane: int


class FormProgram(NamedTuple):
    """What depends on which elements of a state are in rows and keys. ``engine`` has to live as long as the function is called.

    Attributes:
        successors: see :data:`lufjax.search.native_loop.SUCCESSORS`.
        columns: ``int32[width]``, which values of the whole key are in it; all others are the same for every machine with these fixed elements.
        reads: ``bool[state width]``, elements of the state that a key depends on.
    """

    engine: Any
    successors: Callable[..., int]
    columns: np.ndarray
    reads: np.ndarray


def compile_form(compiled: Compiled, fixed: np.ndarray | None, index: np.ndarray) -> FormProgram:
    """Compile the keys of a machine between two events, and the loop that asks for them.

    Args:
        compiled: the machine; operations of its key functions are those that :mod:`lufjax.backends.lowering` translates.
        fixed: ``int32[state width]`` of which the elements that are not FREE are the same in every machine that a key is asked of; None for none.
        index: ``int32[size]``, elements of a state that are in a row.
    """
    known, code = None if fixed is None else fixed.tobytes(), ctypes.CFUNCTYPE(ctypes.c_void_p)
    engine, columns, reads, successors = machine_code(
        lambda: _form_module(compiled, fixed, index), ("form", compiled, known, index.tobytes()),
        key_columns=code, key_reads=code, successors=SUCCESSORS,
    )  # fmt: skip
    every = np.ctypeslib.as_array(ctypes.cast(columns(), ctypes.POINTER(ctypes.c_int32)), (1,))
    every = np.ctypeslib.as_array(ctypes.cast(columns(), ctypes.POINTER(ctypes.c_int32)), (1 + int(every[0]),))[1:].copy()
    is_read = np.ctypeslib.as_array(ctypes.cast(reads(), ctypes.POINTER(ctypes.c_uint8)), (sum(compiled.sizes.values()),)) > 0
    return FormProgram(engine, successors, every, is_read)


def _form_module(compiled: Compiled, fixed: np.ndarray | None, index: np.ndarray) -> ir.Module:
    """The functions ``key_0``, ``key_1``, ...; ``key_columns``, which gives a count and as many numbers; ``key_reads``; and ``successors``."""
    module, arrays, width = ir.Module(name="lufjax_form"), _named(compiled.arrays), sum(compiled.sizes.values())
    fixed = np.full(width, FREE) if fixed is None else fixed
    constants = {name: own.astype(object) for name, own in _elements_of(arrays, fixed).items()}
    for own in constants.values():
        own[own == FREE] = None
    places = _elements_of(arrays, np.arange(width))
    traced = list[tuple[Lowering, np.ndarray]]()
    for number, function in enumerate(compiled.key_functions()):
        kernel = ir.Function(module, KEY, name=f"key_{number}")
        kernel.linkage = "internal"
        kernel.attributes.add("noinline")
        memory = native.PointerTable(kernel.args[0], {name: i for i, name in enumerate(arrays)})
        lowering = Lowering(ir.IRBuilder(kernel.append_basic_block("entry")), memory, constants)
        traced.append((lowering, emit_key(lowering, function, arrays)))
    columns = [c for c, values in enumerate(zip(*(values for _, values in traced), strict=True)) if not all_equal(values)]
    reads = np.zeros(width, np.uint8)
    for lowering, values in traced:
        b, out, seen = lowering.builder, lowering.builder.function.args[1], I32(0)
        for place in range(8 * words_of(len(columns))):
            value = b.sub(values[columns[place]], I32(SMALLEST)) if place < len(columns) else I32(0)
            b.store(b.trunc(value, I8), b.gep(out, [I64(place ^ 7)]))
            seen = b.or_(seen, value)
        b.ret(b.and_(seen, I32(~(LARGEST - SMALLEST) & 0xFFFFFFFF)))
        needed = _needed(b.function)
        for (name, element), load in lowering.loaded.items():
            reads[places[name][element]] |= id(load) in needed
    _emit_data(module, "key_columns", np.array([len(columns), *columns], np.int32))
    _emit_data(module, "key_reads", reads)
    keys = [lowering.builder.function for lowering, _ in traced]
    emit_successors(module, compiled, index, fixed != FREE, reads > 0, keys, words_of(len(columns)))
    return module


def emit_key(lowering: Lowering, function: Key, arrays: Arrays) -> np.ndarray:
    """The values of a key of the machine whose memory the lowering has."""

    def whole(array: str) -> jax.Array:
        size, dtype = arrays[array]
        return read_p.bind(array=array, pattern=(), size=size, dtype=np.dtype(dtype))

    found = list[np.ndarray]()
    lowering.run(jax.make_jaxpr(lambda: function(MachineState(*map(whole, MachineState._fields))))(), found.extend)
    return found[0]


def _named(arrays: tuple[tuple[str, tuple[int, ...], str], ...]) -> Arrays:
    return {name: (size, np.dtype(dtype)) for name, size, dtype in arrays}


def _elements_of(arrays: Arrays, row: np.ndarray) -> dict[str, np.ndarray]:
    """A row of all the elements of a state, as its arrays."""
    ends = np.cumsum([math.prod(arrays[name][0]) for name in MachineState._fields])
    return {name: part.reshape(arrays[name][0]) for name, part in zip(MachineState._fields, np.split(row, ends[:-1]), strict=True)}


def _needed(function: ir.Function) -> set[int]:
    """``id`` of each instruction that a store, a branch or the result of a function depends on."""
    found: set[int] = set()
    every = [instruction for block in function.blocks for instruction in block.instructions]
    ahead = [instruction for instruction in every if instruction.opname in ("store", "ret", "br", "switch")]
    while ahead:
        instruction = ahead.pop()
        if id(instruction) not in found:
            found.add(id(instruction))
            ahead.extend(operand for operand in instruction.operands if isinstance(operand, ir.Instruction))
    return found


def _emit_data(module: ir.Module, name: str, values: np.ndarray) -> None:
    """A function of this name without arguments, which returns where the values are."""
    kind = ir.ArrayType(ir.IntType(8 * values.itemsize), len(values))
    data = ir.GlobalVariable(module, kind, name=f"{name}_data")
    data.global_constant, data.linkage = True, "internal"
    setattr(data, "initializer", ir.Constant(kind, values.tolist()))  # noqa: B010 - typed as None
    b = ir.IRBuilder(ir.Function(module, ir.FunctionType(BYTES, []), name=name).append_basic_block("entry"))
    b.ret(b.bitcast(data, BYTES))


@lru_cache(maxsize=32)
def compile_search(
    shape: MachineShape, program: tuple[str, ...], arrays: tuple[tuple[str, tuple[int, ...], str], ...]
) -> SearchProgram:  # fmt: skip
    """Compile for this machine's CPU; once in a process."""

    def build() -> ir.Module:
        module = native.build_ir(shape, program, _named(arrays))
        module.get_global("run_lane").linkage = "external"
        return module

    (engine,) = machine_code(build, ("search", shape, program, arrays))
    return SearchProgram(engine, engine.get_function_address("run_lane"))
