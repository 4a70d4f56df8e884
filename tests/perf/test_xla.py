"""The XLA program updates the state in place, and consists of the same gathers and scatters whatever the machine's size."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import Any

import jax
import numpy as np

from lufjax import engine
from lufjax.backends import rollout
from lufjax.events import Op
from lufjax.params import MachineParams, MachineShape, TlbGeometry
from lufjax.policy import FlushPolicy
from lufjax.state import init_state
from lufjax.trace import EMPTY_TRACE

SHAPE = MachineShape(
    num_cpus=2, num_processes=1, num_vpns=128, num_frames=64, num_vmas=4, num_file_pages=96, num_anon=16, l1=TlbGeometry(4, 4),
    l2=TlbGeometry(8, 4), rmap_slots=1, gather_slots=4, batch_slots=8, pcp_slots=8, quarantine_slots=1,
)  # fmt: skip
LANES, SLOTS = 97, 64
"""A number of lanes that nothing else in the program has: an array with that leading dimension is state."""
INSTRUCTION = re.compile(r"= (?:\()?\w+\[([\d,]+)\]\S* (\S+?)\(")


def program_and_arguments(shape: MachineShape) -> tuple[Any, tuple[Any, ...]]:
    """The program for the operations of ``llm`` on one device, and shapes of its arguments."""
    base = init_state(shape, MachineParams(1, 0, 0, 0, 1, 0, 1, 0, 0, 1, FlushPolicy()), EMPTY_TRACE)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((LANES, *leaf.shape), leaf.dtype), base)
    lane = jax.ShapeDtypeStruct((LANES,), np.int32)
    params = MachineParams(*(lane for _ in MachineParams._fields[:-1]), policy=FlushPolicy(*(lane for _ in FlushPolicy._fields)))
    events = jax.ShapeDtypeStruct((1, 100, 4), np.int32)
    engine.use_all_cores()
    program = engine.xla_program(shape, rollout.program_for({Op.LOAD, Op.STORE, Op.TICK}), SLOTS, tuple(jax.devices()[:1]))
    return program, (params, state, events, lane, lane)


def lowered(shape: MachineShape) -> jax.stages.Lowered:
    """The program, lowered for that device."""
    program, arguments = program_and_arguments(shape)
    return program.lower(*arguments)


def test_no_loop_copies_a_state_array() -> None:
    text = lowered(SHAPE).compile().as_text()
    in_loops = text[: text.index("\nENTRY")]
    assert " while(" in text
    found = [([int(n) for n in size.split(",")], opcode) for size, opcode in INSTRUCTION.findall(in_loops)]
    of_state = {opcode for size, opcode in found if size[0] == LANES}
    assert "scatter" in of_state or "dynamic-update-slice" in of_state or "fusion" in of_state
    copies = [size for size, opcode in found if opcode.startswith("copy") and (size[0] == LANES or prod(size) >= LANES * 64)]
    assert copies == []


def test_gathers_and_scatters_do_not_grow_with_the_machine() -> None:
    small = replace(SHAPE, num_frames=256, num_cpus=8, l1=TlbGeometry(4, 4), l2=TlbGeometry(16, 4))
    large = replace(
        SHAPE, num_frames=65536, num_vpns=262144, num_file_pages=262144, num_cpus=64, l1=TlbGeometry(64, 4), l2=TlbGeometry(1024, 4)
    )
    counts = []
    for shape in (small, large):
        text = lowered(shape).as_text()
        counts.append([text.count(f'"stablehlo.{operation}"(') for operation in ("gather", "scatter")])
    assert counts[0] == counts[1]
    assert min(counts[0]) > 100
