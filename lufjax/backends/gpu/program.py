"""The GPU program: three kernels that make lanes, take them from event to event, and read what they counted.

A *thread block* keeps its lanes from launch to end. Nothing of a lane is in a register between two phases, so any thread can make the next
visit of any lane: before every visit the block sorts its lanes by the phase that they wait for, and a warp gets lanes that all wait
for the same kernel. Lanes never interact, so the order does not matter.

The kernels of the phases are those of every backend, translated by :mod:`lufjax.backends.lowering`. Between two barriers every thread
goes through one *stage*, a function that knows its thread by number. ``EMULATED`` replaces threads and barriers by loops: the same stages, compiled
for a CPU, which is how they are tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from lufjax.backends import code_cache
from lufjax.backends.gpu.rows import LINE, LaneRow, RowLayout, layout_of
from lufjax.backends.native import NUM_PARAMS, emit_has_ended, emit_kernels, loop
from lufjax.backends.operations import I32, I64
from lufjax.params import MachineShape
from lufjax.phases import GROUPS, Phase

GLOBAL, SHARED = 1, 3
"""Address spaces of the device; a CPU has one memory and takes either."""
INTS = I32.as_pointer(GLOBAL)
BLOCK = 512
"""Most threads of a thread block, and the lanes that it keeps. One such block fills a multiprocessor if a thread has 128 registers."""
WARP = 32
EMPTY = I32(-1)
"""A slot without a lane."""
TRIPLE = "nvptx64-nvidia-cuda"
CUDA, EMULATED = "cuda", "emulated"

ARGUMENTS: dict[str, list[ir.Type]] = {
    "start_lanes": [INTS, INTS, INTS, INTS],
    "run_lanes": [INTS, INTS, INTS, I64, INTS, I32],
    "take_lanes": [INTS, INTS],
}
"""``start_lanes(rows, initial, which, params)`` and ``take_lanes(rows, taken)``: a thread block for each lane.
``run_lanes(rows, events, trace_index, trace_stride, stops, num_lanes)``: a thread for each lane, at most ``BLOCK`` in a thread block."""
Each = Callable[[ir.Function], None]
Body = Callable[[Any, list[Any], Any, Each], None]


class Source(NamedTuple):
    """Kernels for a GPU, before they are compiled.

    Attributes:
        facts: all that they depend on, with a faithful ``repr``. arguments: of each kernel by name. emit: adds what they need to a module, and gives
            the body of each kernel. threads: most of a thread block; the fewer, the more registers may each have.
    """

    facts: Hashable
    arguments: Mapping[str, Sequence[ir.Type]]
    emit: Callable[[ir.Module], dict[str, Body]]
    threads: int

    def module(self, form: str) -> ir.Module:
        """Their IR. ``form``: ``CUDA`` or ``EMULATED``."""
        module = ir.Module(name="lufjax_gpu")
        for name, body in self.emit(module).items():
            function = (_emit_on_device if form == CUDA else _emit_emulated)(module, name, self.arguments[name], body)
            if form == CUDA:
                module.add_named_metadata("nvvm.annotations", [function, "maxntidx", I32(self.threads)])
        return module


def source_of(shape: MachineShape, program: tuple[str, ...]) -> Source:
    """The kernels that run machines of a shape through the groups of phases of a trace."""
    layout = layout_of(shape)

    def emit(module: ir.Module) -> dict[str, Body]:
        return {
            "start_lanes": _start_lanes(module, layout),
            "run_lanes": _run_lanes(module, shape, program, layout),
            "take_lanes": _take_lanes(module, layout),
        }

    return Source(("lanes", shape, program), ARGUMENTS, emit, BLOCK)


def ptx_of(source: Source, capability: str) -> bytes:
    """A program for a GPU as PTX, kept from one process to the next. ``capability``: as in ``sm_90``."""
    name = code_cache.name_of(repr(("gpu", source.facts, capability)))
    kept = code_cache.load(name)
    if kept:
        return kept
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = source.module(CUDA)
    module.triple = TRIPLE
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    target = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=capability, opt=3)
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    text = target.emit_assembly(parsed).encode()
    code_cache.save(name, text)
    return text


def _emit_on_device(module: ir.Module, name: str, arguments: Sequence[ir.Type], body: Body) -> ir.Function:
    """A kernel: every thread of the device runs it."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name=name)
    function.calling_convention = "ptx_kernel"
    b = ir.IRBuilder(function.append_basic_block("entry"))
    block, size, thread = (b.call(_declared(module, f"llvm.nvvm.read.ptx.sreg.{place}.x", I32), []) for place in ("ctaid", "ntid", "tid"))

    def each(stage: ir.Function) -> None:
        b.call(stage, [*function.args, block, size, thread])
        b.call(_declared(module, "llvm.nvvm.barrier0", ir.VoidType()), [])

    body(b, [*function.args], size, each)
    b.ret_void()
    return function


def _emit_emulated(module: ir.Module, name: str, kinds: Sequence[ir.Type], body: Body) -> ir.Function:
    """A function for a CPU with two more arguments, thread blocks and threads in each: one block, and one thread, after the other."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*kinds, I32, I32]), name=name)
    *arguments, num_blocks, size = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    with loop(b, num_blocks) as block:

        def each(stage: ir.Function) -> None:
            with loop(b, size) as thread:
                b.call(stage, [*arguments, block, size, thread])

        body(b, arguments, size, each)
    b.ret_void()
    return function


def _declared(module: ir.Module, name: str, result: ir.Type) -> ir.Function:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, []), name=name)


def emit_stage(module: ir.Module, name: str, arguments: list[ir.Type], emit: Callable[..., None]) -> ir.Function:
    """``void name(arguments, block, size, thread)``; ``emit`` takes the builder and all arguments."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*arguments, I32, I32, I32]), name=name)
    function.linkage = "internal"
    b = ir.IRBuilder(function.append_basic_block("entry"))
    emit(b, *function.args)
    b.ret_void()
    return function


def row_at(b: Any, base: Any, number: Any, width: Any) -> Any:
    """Row ``number`` (I32) of an array of rows."""
    return b.gep(base, [b.mul(b.sext(number, I64), width)])


def _start_lanes(module: ir.Module, layout: RowLayout) -> Body:
    """Lane ``l`` begins as row ``which[l]`` of ``initial``, with row ``l`` of ``params``."""

    def copy(b: Any, rows: Any, initial: Any, which: Any, params: Any, block: Any, size: Any, thread: Any) -> None:
        row, width = row_at(b, rows, block, I64(layout.width)), layout.offsets["params"]
        start, own = row_at(b, initial, b.load(b.gep(which, [block])), I64(layout.width)), row_at(b, params, block, I64(NUM_PARAMS))
        for source, offset, count in ((start, 0, width), (own, width, NUM_PARAMS)):
            with loop(b, I32(count), thread, size) as i:
                b.store(b.load(b.gep(source, [i])), b.gep(row, [b.add(i, I32(offset))]))

    stage = emit_stage(module, "copy", ARGUMENTS["start_lanes"], copy)
    return lambda b, arguments, size, each: each(stage)


def _take_lanes(module: ir.Module, layout: RowLayout) -> Body:
    """Copy the beginning of each row to ``taken``, and set to 0 what counts."""

    def take(b: Any, rows: Any, taken: Any, block: Any, size: Any, thread: Any) -> None:
        row, target = row_at(b, rows, block, I64(layout.width)), row_at(b, taken, block, I64(layout.taken))
        with loop(b, I32(layout.taken), thread, size) as i:
            place = b.gep(row, [i])
            value = b.load(place)
            b.store(value, b.gep(target, [i]))
            b.store(b.select(b.icmp_signed("<", i, I32(layout.counting)), I32(0), value), place)

    stage = emit_stage(module, "take", ARGUMENTS["take_lanes"], take)
    return lambda b, arguments, size, each: each(stage)


def _run_lanes(module: ir.Module, shape: MachineShape, program: Sequence[str], layout: RowLayout) -> Body:
    """Sort the lanes of the block by phase, make one visit of each, until all are at their stops, or at a phase that is not compiled in.

    Lanes are sorted into *slots*; each group of phases begins at a multiple of a warp, so that all threads of a warp run the same kernel. There
    are more slots than threads, and threads go round.
    """
    done = len(program)
    sizes = {"counts": done + 1, "groups": BLOCK, "ranks": BLOCK, "slots": (num_slots := BLOCK + WARP * done), "used": 1}
    counts, groups, ranks, slots, used = (_shared(module, name, size) for name, size in sizes.items())
    kernels = emit_kernels(module, shape, program, layout.arrays, [INTS, INTS], lambda row, events: LaneRow(row, events, layout.offsets))
    for kernel in kernels.values():
        for argument, elements in zip(kernel.args, (LINE, 4), strict=True):
            argument.add_attribute("noalias")
            argument.attributes.align = 4 * elements
    group_of = _table(module, "group_of", _group_of(program))
    types = ARGUMENTS["run_lanes"]

    def at(b: Any, array: Any, index: Any) -> Any:
        return b.gep(array, [I32(0), index])

    def clear(b: Any, *arguments: Any) -> None:
        *_, size, thread = arguments
        with loop(b, I32(done + 1), thread, size) as i:
            b.store(I32(0), at(b, counts, i))

    def begin(b: Any, *arguments: Any) -> None:
        *_, size, thread = arguments
        clear(b, size, thread)
        with loop(b, I32(num_slots), thread, size) as i:
            b.store(EMPTY, at(b, slots, i))

    def classify(b: Any, *arguments: Any) -> None:
        rows, _, _, _, stops, num_lanes, block, size, thread = arguments
        lane = b.add(b.mul(block, size), thread)
        before, exists, counted = b.block, b.append_basic_block("exists"), b.append_basic_block("counted")
        b.cbranch(b.icmp_signed("<", lane, num_lanes), exists, counted)
        b.position_at_end(exists)
        flow = b.gep(row_at(b, rows, lane, I64(layout.width)), [I32(layout.offsets["flow"])])
        phase, has_ended = emit_has_ended(b, flow, b.load(b.gep(stops, [lane])))
        found = b.select(has_ended, I32(done), b.load(at(b, group_of, phase)))
        b.branch(counted)
        b.position_at_end(counted)
        group = b.phi(I32)
        group.add_incoming(I32(done), before)
        group.add_incoming(found, exists)
        b.store(group, at(b, groups, thread))
        b.store(b.atomic_rmw("add", at(b, counts, group), I32(1), "monotonic"), at(b, ranks, thread))

    def place(b: Any, *arguments: Any) -> None:
        thread = arguments[-1]
        own, first, total = b.load(at(b, groups, thread)), b.load(at(b, ranks, thread)), I32(0)
        for number in range(done):
            warps = b.and_(b.add(b.load(at(b, counts, I32(number))), I32(WARP - 1)), I32(-WARP))
            first = b.add(first, b.select(b.icmp_signed("<", I32(number), own), warps, I32(0)))
            total = b.add(total, warps)
        with b.if_then(b.icmp_signed("<", own, I32(done))):
            b.store(thread, at(b, slots, first))
        with b.if_then(b.icmp_signed("==", thread, I32(0))):
            b.store(total, at(b, used, I32(0)))

    def visit(b: Any, *arguments: Any) -> None:
        rows, events, trace_index, stride, _, _, block, size, thread = arguments
        clear(b, size, thread)
        with loop(b, b.load(at(b, used, I32(0))), thread, size) as slot:
            local = b.load(at(b, slots, slot))
            leave = b.append_basic_block("visited")
            with b.if_then(b.icmp_signed("!=", local, EMPTY)):
                b.store(EMPTY, at(b, slots, slot))
                lane = b.add(b.mul(block, size), local)
                row, trace = row_at(b, rows, lane, I64(layout.width)), row_at(b, events, b.load(b.gep(trace_index, [lane])), stride)
                switch = b.switch(b.load(at(b, groups, local)), leave)
                for number, name in enumerate(program):
                    switch.add_case(I32(number), b.append_basic_block(f"visit_{name}"))
                    b.position_at_end(switch.cases[-1][1])
                    b.call(kernels[name], [row, trace])
                    b.branch(leave)
                b.position_at_end(leave)

    stages = {emit.__name__: emit_stage(module, emit.__name__, types, emit) for emit in (begin, classify, place, visit)}

    def body(b: Any, arguments: list[Any], size: Any, each: Each) -> None:
        head, work, leave = (b.append_basic_block(name) for name in ("round", "work", "finished"))
        each(stages["begin"])
        b.branch(head)
        b.position_at_end(head)
        each(stages["classify"])
        b.cbranch(b.icmp_signed("==", b.load(at(b, counts, I32(done))), size), leave, work)
        b.position_at_end(work)
        each(stages["place"])
        each(stages["visit"])
        b.branch(head)
        b.position_at_end(leave)

    return body


def _group_of(program: Sequence[str]) -> np.ndarray:
    """The position in the program of the group of each phase; the length of the program for a phase that is not in it."""
    groups = np.full(max(Phase) + 1, len(program))
    for number, name in enumerate(program):
        groups[list(GROUPS[name])] = number
    return groups


def _shared(module: ir.Module, name: str, count: int) -> Any:
    """An array that the threads of a block share."""
    variable: Any = ir.GlobalVariable(module, ir.ArrayType(I32, count), name=name, addrspace=SHARED)
    variable.linkage, variable.initializer = "internal", ir.Constant(variable.value_type, ir.Undefined)
    return variable


def _table(module: ir.Module, name: str, numbers: np.ndarray) -> Any:
    """An array of constants."""
    table: Any = ir.GlobalVariable(module, ir.ArrayType(I32, len(numbers)), name=name, addrspace=GLOBAL)
    table.linkage, table.global_constant, table.initializer = "internal", True, ir.Constant(table.value_type, numbers.tolist())
    return table
