"""Build and run ``tiny.pml``: the machine as a model for SPIN, to compare :mod:`lufjax.search` with.

SPIN and a C compiler are needed. What the model leaves out is refused; rules that nothing in it reads may have any word.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lufjax.events import FIRST_PAGE, Op, VmaFlag
from lufjax.search.alphabet import Alphabet, has_room

SOURCE = Path(__file__).with_name("tiny.pml")
NONE = 255
CALLS = {
    Op.LOAD: "load({cpu}, {vpn})",
    Op.STORE: "store_event({cpu}, {vpn})",
    Op.MMAP: "mmap({cpu}, {vpn}, {arg}, {vma}, {first})",
    Op.MUNMAP: "munmap({cpu}, {vpn})",
    Op.GATHER_FINISH: "gather_finish({cpu})",
    Op.FILE_WRITE: "file_write({cpu}, {arg})",
    Op.RECLAIM: "reclaim({cpu}, {vpn})",
    Op.RECLAIM_FLUSH: "reclaim_flush({cpu})",
    Op.ALLOC_FOREIGN: "alloc_foreign({cpu})",
}
"""Op -> its inline in the model."""
ALLOWED = {
    "reclaim_flush": ("never", "page", "batch", "take_off"),
    "debt_scope": ("global",),
    "buddy_tag": ("kept",),
    "buddy_merge": ("off",),
    "refill_tag": ("kept",),
    "init_on_free": ("off",),
    "gather_flush": ("none", "now", "page"),
    "munmap_debt_rule": ("none", "vma_flag", "pte_marker", "pending", "always"),
    "va_rule": ("off",),
}
"""Rules of which the model has some words only."""
FLAGS = ("-DSAFETY", "-DNOREDUCE", "-DNOFAIR", "-DMEMLIM=8000", "-w")
"""Safety properties only; every state stored whole and followed by every event."""


@dataclass(frozen=True)
class Outcome:
    """What a search of SPIN covered: all of the space.

    Attributes:
        states: stored. transitions: enabled events, those that violate included. violating: those.
        depth: the longest sequence that reaches a state first (breadth first).
        shortest: violation class -> length of its shortest sequence (breadth first). seconds: of SPIN's own clock. cpu_seconds: of the process.
    """

    states: int
    transitions: int
    violating: int
    depth: int
    shortest: dict[str, int]
    seconds: float
    cpu_seconds: float


def missing() -> str:
    """What is not installed here; empty if nothing."""
    return ", ".join(name for name in ("spin", "cc") if shutil.which(name) is None)


def build(
    alphabet: Alphabet, words: Mapping[str, Any], directory: Path, *,
    breadth_first: bool = True, quiet: bool = False, unread: bool = True, optimise: str = "-O1",
) -> Path:  # fmt: skip
    """Write the model of a machine under a policy, and compile its search.

    Args:
        words: rule -> word, as in a preset. quiet: no assertions: violating events are self-loops.
        unread: store also what no event reads (SPIN leaves it out, unless told).

    Raises:
        ValueError: the model does not have this; one line.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(SOURCE, directory)
    (directory / "machine.h").write_text(_machine(alphabet, words, quiet=quiet))
    (directory / "events.h").write_text("".join(f"  :: d_step {{ {_call(rows)}; forget() }}\n" for rows in alphabet.rows))
    order = ("-DBFS",) if breadth_first else ()
    for command in (["spin", *(["-o2"] if unread else []), "-a", SOURCE.name], ["cc", optimise, *order, *FLAGS, "-o", "pan", "pan.c"]):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return directory / "pan"


def run(program: Path, *, table: int = 22) -> Outcome:
    """Search all of the space.

    Args:
        table: the hash table has two to this power entries.

    Raises:
        RuntimeError: the search did not finish.
    """
    log = program.with_name("log")
    with log.open("w") as out:
        began = time.monotonic()
        done = subprocess.Popen([program, "-c0", "-n", f"-w{table}", "-m2000000"], cwd=program.parent, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(done.pid, 0)
        done.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
    shortest: dict[str, int] = {}
    violating = 0
    summary = []
    with log.open() as lines:
        for line in lines:
            found = re.search(r"assertion violated .*?(is_(\w+)|\(1\)).*\(at depth (\d+)\)", line)
            if found is None:
                summary.append(line)
            elif found[2] is None:
                violating += 1
            else:
                kind = found[2].upper()
                shortest[kind] = min(shortest.get(kind, int(found[3]) + 1), int(found[3]) + 1)
    log.unlink()
    text = "".join(summary)
    if done.returncode or "max search depth too small" in text or "out of memory" in text:
        raise RuntimeError(f"{program}: {text.strip()}")

    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        if found is None:
            raise RuntimeError(f"{program}: {pattern} is not in its report")
        return float(found[1])

    states, matched = int(number(r"(\d+) states, stored")), int(number(r"(\d+) states, matched"))
    depth = int(number(r"depth reached (\d+)"))
    elapsed = number(r"elapsed time ([\d.e+-]+) seconds")
    return Outcome(states, states + matched - 1, violating, depth, shortest, elapsed or wall, usage.ru_utime + usage.ru_stime)


def _machine(alphabet: Alphabet, words: Mapping[str, Any], *, quiet: bool) -> str:
    shape, trace, params = alphabet.shape, alphabet.trace, alphabet.scenario.params
    normal = {rule: {True: "on", False: "off"}.get(word, word) if isinstance(word, bool) else word for rule, word in words.items()}
    for rule, allowed in ALLOWED.items():
        if normal[rule] not in allowed:
            raise ValueError(f"policy.{rule}={normal[rule]}: tiny.pml has {', '.join(allowed)}")
    shared = all(flags & VmaFlag.SHARED and not flags & VmaFlag.ANON for flags in trace.vmas)
    has_tiers = params["fast_frames"] < params["frames_in_use"]
    if shape.num_processes != 1 or not shared or not has_room(shape) or params["load_mode"] or has_tiers:
        raise ValueError(f"{alphabet.scenario.path}: tiny.pml has one process, one tier, shared file mappings, and TLBs with room for every page")
    vmas = trace.page_vma[0]
    mapped = vmas >= 0
    numbers = {
        "QUIET": int(quiet), "C": shape.num_cpus, "V": shape.num_vpns, "F": shape.num_frames, "R": shape.rmap_slots, "NF": shape.num_file_pages,
        "BATCH_SIZE": params["reclaim_batch"], "PCP_BATCH": params["pcp_batch"], "PCP_HIGH": params["pcp_high"], "LOADED": _bits(trace.loaded == 0),
        **{f"{flag.name}_VMAS": _bits((trace.vmas & flag) > 0) for flag in (VmaFlag.READ, VmaFlag.WRITE, VmaFlag.MAYWRITE)},
        "VMA": _list(np.where(mapped, vmas, NONE)), "BACKING": _list(np.where(mapped, trace.page_backing[0], NONE)), "MAPPED": _list(mapped),
        "PERMITTED": _list(mapped & ((trace.vmas[vmas] & VmaFlag.WRITE) > 0)), "FREE_LIST": _list(range(shape.num_frames)),
        "UNLOCKED(cpu)": "(" + " + ".join(f"open[{cpu}]" for cpu in range(shape.num_cpus)) + " == open[cpu])",
    }  # fmt: skip
    policy = {
        rule.upper() if isinstance(word, int) else f"{rule}_is_{word}".upper(): word if isinstance(word, int) else 1 for rule, word in normal.items()
    }
    return "".join(f"#define {name} {value}\n" for name, value in (numbers | policy).items())


def _call(rows: np.ndarray) -> str:
    cpu, op, vpn, arg, repeat = rows[0].tolist()
    is_half = op == Op.RECLAIM_FLUSH and arg == 1
    if len(rows) > 1 or op not in CALLS or is_half or (op in (Op.MMAP, Op.RECLAIM) and arg < 0):
        raise ValueError(f"event {rows.tolist()}: not in tiny.pml")
    return CALLS[Op(op)].format(cpu=cpu, vpn=vpn, arg=arg, vma=repeat % FIRST_PAGE, first=repeat // FIRST_PAGE)


def _bits(chosen: np.ndarray) -> int:
    return sum(1 << i for i, yes in enumerate(chosen.tolist()) if yes)


def _list(values: Sequence[int] | np.ndarray) -> str:
    return "{" + ", ".join(str(int(value)) for value in values) + "}"
