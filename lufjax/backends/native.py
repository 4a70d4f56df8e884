"""Compile the phase kernels for one CPU core: trace each kernel for one machine, translate it to LLVM, run lane by lane.

The kernels are the ones that XLA runs (``rollout.py``); this is a second way to execute the same jaxprs, bit for bit. A kernel is a
straight line of small integer operations between reads and predicated writes, so every value becomes scalars in registers, and a machine
runs from event to event with real branches between phases. Needs ``llvmlite``; no C compiler.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from lufjax import state as st
from lufjax.backends import code_cache
from lufjax.backends.lowering import Lowering, Memory, emit_writes
from lufjax.backends.operations import I32, I64
from lufjax.backends.primitives import read_p, split_p
from lufjax.backends.rollout import KERNELS
from lufjax.params import MachineParams, MachineShape
from lufjax.phases import GROUPS, Phase
from lufjax.phases.draft import Draft, Target, split_writes
from lufjax.policy import FlushPolicy
from lufjax.state import MachineState, init_state
from lufjax.trace import EMPTY_TRACE

POINTER = I32.as_pointer()
NUM_PARAMS = len(MachineParams._fields) - 1 + len(FlushPolicy._fields)
_P, _L = ctypes.c_void_p, ctypes.c_int64
RUN_LANE = ir.FunctionType(I32, [POINTER.as_pointer(), I32])
"""``int run_lane(own, stop)``: from event to event until the cursor is at ``stop``; returns 1 at a phase that is not compiled in."""
RUN_LANES = ctypes.CFUNCTYPE(ctypes.c_int32, _P, _P, _P, _L, _P, _L, _L)
"""``int run_lanes(bases, strides, trace_index, trace_stride, stops, begin, end)``."""


@dataclass(frozen=True)
class NativeProgram:
    """A compiled machine: ``run(bases, strides, num_arrays, lanes...)``; keep ``engine`` alive as long as it is called."""

    engine: Any
    run: Callable[..., int]


def trace_kernel(group: str, shape: MachineShape, arrays: dict[str, tuple[tuple[int, ...], Any]]) -> tuple[Any, list[Any]]:
    """The jaxpr of one phase kernel on one machine, and what each of its writes addresses."""
    targets: list[Target] = []

    def read(array: str, index: tuple[Any, ...]) -> jax.Array:
        size, dtype = arrays[array]
        dynamic = [jnp.asarray(i, jnp.int32) for i in index if not isinstance(i, int | slice)]
        pattern = tuple(
            ("static", int(i)) if isinstance(i, int) else ("slice", *i.indices(n)[:2]) if isinstance(i, slice) else ("dynamic",)
            for i, n in zip(index, size, strict=False)
        )
        return read_p.bind(*dynamic, array=array, pattern=pattern, size=size, dtype=np.dtype(dtype))

    def kernel() -> list[Any]:
        fields = [jnp.int32(0)] * NUM_PARAMS
        for column in range(NUM_PARAMS):
            fields[column] = read("params", (column,))
        own = len(MachineParams._fields) - 1
        params = MachineParams(*fields[:own], policy=FlushPolicy(*fields[own:]))
        draft = Draft(shape, params, read, lambda array: arrays[array][1], split=split_p.bind)
        KERNELS[group](draft, jnp.bool_(True))
        targets[:], traced = split_writes(draft.finish())
        return traced

    return jax.make_jaxpr(kernel)(), targets


def lane_arrays(state: MachineState) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each array of one lane, of the parameters and of the trace, from a state without a lane axis."""
    arrays = {name: (tuple(np.shape(value)), np.asarray(value).dtype) for name, value in state._asdict().items()}
    return arrays | {"params": ((NUM_PARAMS,), np.int32), "events": ((1 << 30, 4), np.int32)}


@dataclass(frozen=True)
class PointerTable:
    """Memory of a machine whose arrays are anywhere: a table of pointers, in the order of ``numbers``."""

    bases: Any
    numbers: dict[str, int]
    index = I64

    def pointer(self, builder: Any, array: str) -> Any:
        """The address of an array."""
        return builder.load(builder.gep(self.bases, [I64(self.numbers[array])]))


def arrays_of(shape: MachineShape) -> dict[str, tuple[tuple[int, ...], Any]]:
    """:func:`lane_arrays` of a shape."""
    return lane_arrays(init_state(shape, MachineParams(1, 0, 0, 0, 1, 0, 1, 0, 0, 1, FlushPolicy()), EMPTY_TRACE))


def build_ir(shape: MachineShape, program: Sequence[str], arrays: dict[str, tuple[tuple[int, ...], Any]]) -> ir.Module:
    """One function a kernel, and ``run_lane``, which takes a machine from event to event."""
    module = ir.Module(name="lufjax")
    numbers = {name: number for number, name in enumerate(arrays)}
    kernels = emit_kernels(module, shape, program, arrays, [POINTER.as_pointer()], lambda bases: PointerTable(bases, numbers))
    _emit_run_lane(module, program, kernels, numbers)
    return module


def emit_kernels(
    module: ir.Module, shape: MachineShape, program: Sequence[str], arrays: dict[str, tuple[tuple[int, ...], Any]], arguments: list[ir.Type],
    memory: Callable[..., Memory],
) -> dict[str, ir.Function]:  # fmt: skip
    """A function ``void kernel_GROUP(arguments)`` for each group. ``memory``: from the arguments to where the arrays are."""
    kernels = {}
    for group in program:
        closed, targets = trace_kernel(group, shape, arrays)
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name=f"kernel_{group}")
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        lowering = Lowering(builder, memory(*function.args))

        def finish(values: list[np.ndarray], lowering: Lowering = lowering, closed: Any = closed, targets: list[Any] = targets) -> None:
            emit_writes(lowering, values, targets, closed, arrays)
            lowering.builder.ret_void()

        lowering.run(closed, finish)
        kernels[group] = function
    return kernels


@contextmanager
def loop(b: Any, count: Any, first: Any = None, step: Any = None) -> Iterator[Any]:
    """Emit the body of the block for each number from ``first`` (0) to below ``count`` in steps of ``step`` (1), all of one type."""
    before, kind = b.block, count.type
    head, body, leave = (b.function.append_basic_block(name) for name in ("head", "body", "leave"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(kind)
    index.add_incoming(kind(0) if first is None else first, before)
    b.cbranch(b.icmp_signed("<", index, count), body, leave)
    b.position_at_end(body)
    yield index
    index.add_incoming(b.add(index, kind(1) if step is None else step), b.block)
    b.branch(head)
    b.position_at_end(leave)


def emit_has_ended(b: Any, flow: Any, stop: Any) -> tuple[Any, Any]:
    """The phase of a lane whose scalars are at ``flow``, and whether it is between events at its stop."""
    phase, cursor = (b.load(b.gep(flow, [I32(st.BANK_OF[name][1])])) for name in ("phase", "cursor"))
    between = b.or_(b.icmp_signed("==", phase, I32(Phase.FETCH)), b.icmp_signed("==", phase, I32(Phase.BACKGROUND)))
    return phase, b.and_(between, b.icmp_signed(">=", cursor, stop))


def _emit_run_lane(module: ir.Module, program: Sequence[str], kernels: dict[str, ir.Function], numbers: dict[str, int]) -> None:
    """The function of :data:`RUN_LANE`."""
    function = ir.Function(module, RUN_LANE, name="run_lane")
    function.linkage = "internal"
    own, stop = function.args
    entry, step, dispatch, missing, leave = (function.append_basic_block(name) for name in ("entry", "step", "dispatch", "missing", "leave"))
    b = ir.IRBuilder(entry)
    flow = b.load(b.gep(own, [I64(numbers["flow"])]))
    b.branch(step)
    b.position_at_end(step)
    phase, has_ended = emit_has_ended(b, flow, stop)
    b.cbranch(has_ended, leave, dispatch)
    b.position_at_end(dispatch)
    switch = b.switch(phase, missing)
    for group in program:
        block = function.append_basic_block(f"run_{group}")
        c = ir.IRBuilder(block)
        c.call(kernels[group], [own])
        c.branch(step)
        for code in GROUPS[group]:
            switch.add_case(I32(code), block)
    ir.IRBuilder(missing).ret(I32(1))
    ir.IRBuilder(leave).ret(I32(0))


def build_run_lanes(shape: MachineShape, program: Sequence[str], arrays: dict[str, tuple[tuple[int, ...], Any]]) -> ir.Module:
    """The module of :func:`build_ir` with ``run_lanes``."""
    module = build_ir(shape, program, arrays)
    _emit_run_lanes(module, {name: number for number, name in enumerate(arrays)})
    return module


def _emit_run_lanes(module: ir.Module, numbers: dict[str, int]) -> None:
    """``int run_lanes(bases, strides, trace_index, trace_stride, stops, begin, end)``: returns lanes that met an uncompiled phase."""
    pointers, run_lane = POINTER.as_pointer(), module.get_global("run_lane")
    signature = ir.FunctionType(I32, [pointers, I64.as_pointer(), POINTER, I64, POINTER, I64, I64])
    function = ir.Function(module, signature, name="run_lanes")
    bases, strides, trace_index, trace_stride, stops, begin, end = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    own, bad = b.alloca(POINTER, size=I64(len(numbers))), b.alloca(I32)
    b.store(I32(0), bad)
    with loop(b, end, begin) as lane:
        _emit_pointers(b, own, bases, strides, lane, [number for name, number in numbers.items() if name != "events"])
        events = I64(numbers["events"])
        row = b.mul(b.sext(b.load(b.gep(trace_index, [lane])), I64), trace_stride)
        b.store(b.gep(b.load(b.gep(bases, [events])), [row]), b.gep(own, [events]))
        b.store(b.add(b.load(bad), b.call(run_lane, [own, b.load(b.gep(stops, [lane]))])), bad)
    b.ret(b.load(bad))


def _emit_pointers(b: Any, own: Any, bases: Any, strides: Any, lane: Any, numbers: Iterable[int]) -> None:
    """Leave in ``own`` where the arrays of a lane begin."""
    for number in numbers:
        offset = b.mul(lane, b.load(b.gep(strides, [I64(number)])))
        b.store(b.gep(b.load(b.gep(bases, [I64(number)])), [offset]), b.gep(own, [I64(number)]))


@lru_cache(maxsize=32)
def compile_program(shape: MachineShape, program: tuple[str, ...], arrays: tuple[tuple[str, tuple[int, ...], str], ...]) -> NativeProgram:
    """Compile for this machine's CPU."""

    def build() -> ir.Module:
        return build_run_lanes(shape, program, {name: (size, np.dtype(dtype)) for name, size, dtype in arrays})

    return NativeProgram(*machine_code(build, ("run", shape, program, arrays), run_lanes=RUN_LANES))


def machine_code(build: Callable[[], ir.Module], facts: tuple[Any, ...], **functions: Any) -> list[Any]:
    """The engine that holds the machine code of a module, and its functions of these names and ``ctypes`` prototypes.

    Args:
        build: makes the module; not called if its code was kept. facts: all that the module depends on, with a faithful ``repr``.
    """
    target, name = host(), code_cache.name_of(repr(facts))
    kept = code_cache.load(name)
    with _uncollected():
        parsed = llvm.parse_assembly("") if kept else optimised(build(), target)
    engine = llvm.create_mcjit_compiler(parsed, target)
    engine.set_object_cache(lambda module, code: None if kept else code_cache.save(name, bytes(code)), lambda module: kept)
    engine.finalize_object()
    return [engine, *(prototype(engine.get_function_address(name)) for name, prototype in functions.items())]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, which goes through all instructions of a module again and again while it grows."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def host() -> Any:
    """What LLVM compiles for: this machine's CPU."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )


def optimised(module: ir.Module, target: Any) -> Any:
    """The module as it is compiled; the ways of a TLB set, scalars here, are put into vectors."""
    parsed, tuning = llvm.parse_assembly(str(module)), llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.slp_vectorization = True
    passes = llvm.create_pass_builder(target, tuning)
    passes.getModulePassManager().run(parsed, passes)
    return parsed


def compile_for(shape: MachineShape, program: tuple[str, ...]) -> NativeProgram:
    """The compiled program of a shape; compiled once in a process."""
    arrays = arrays_of(shape)
    return compile_program(shape, program, tuple((name, size, np.dtype(dtype).str) for name, (size, dtype) in arrays.items()))


def run_block(
    compiled: NativeProgram, params: MachineParams, state: MachineState, events: np.ndarray, trace_index: np.ndarray, stop: np.ndarray
) -> MachineState:  # fmt: skip
    """Run every lane of a block to its stop, in place: the arrays of ``state``, contiguous ones of NumPy, are changed. Releases the GIL.

    Raises:
        RuntimeError: a lane needs a phase that its operations did not announce.
    """
    packed = np.ascontiguousarray(np.stack([np.asarray(leaf, np.int32) for leaf in [*params[:-1], *params.policy]], -1))
    arrays = [*state, packed, events]
    bases = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    strides = (ctypes.c_int64 * len(arrays))(*(math.prod(array.shape[1:]) for array in arrays))
    bad = compiled.run(
        ctypes.addressof(bases), ctypes.addressof(strides), trace_index.ctypes.data, math.prod(events.shape[1:]), stop.ctypes.data, 0, len(packed)
    )
    if bad:
        raise RuntimeError(f"{bad} lanes met a phase that is not compiled in")
    return state


assert len(list(itertools.chain(*GROUPS.values()))) == len(Phase)
