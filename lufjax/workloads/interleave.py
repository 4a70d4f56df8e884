"""One order for the rows of all CPUs: seeded, random, and no CPU far ahead of another; timer ticks.

A script is cut into turns. A turn is never split by a mapping call of another CPU, so that no row meets a lock of
``mmap_lock`` held by somebody else; accesses of other CPUs do go in between the rows of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lufjax.events import Op
from lufjax.workloads.draws import Draws

_KEY = 1 << 20
_CALLS = (Op.MMAP, Op.MUNMAP, Op.MPROTECT, Op.MADVISE_DONTNEED, Op.GATHER_FINISH, Op.SWITCH)


@dataclass(frozen=True)
class Script:
    """What one CPU (or one recorded program) does, in order.

    Attributes:
        cpu: ``int[n]`` or one number, the CPU of each row.
        rows: ``int32[n, 4]`` op, vpn, arg, repeat.
        turn: ``int[n]`` number of the turn of each row, never decreasing; None: every row is a turn of its own.
    """

    cpu: np.ndarray | int
    rows: np.ndarray
    turn: np.ndarray | None = None


def rows_needed(num_rows: int, num_scripts: int, skew: int, longest_turn: int = 1) -> int:
    """Return the rows each script must have so that none ends before ``num_rows`` rows of ``num_scripts`` scripts ran."""
    return -(-num_rows // num_scripts) + skew + longest_turn + 1


def interleave(scripts: Sequence[Script], draws: Draws, *, num_rows: int, skew: int) -> np.ndarray:
    """Merge scripts into ``int32[num_rows, 5]``.

    All scripts advance by the same number of rows, give or take ``skew``. Scripts that end early just end (a sleeper).
    """
    keys = [_turn_keys(script, draws, skew) for script in scripts]
    rows = np.concatenate([script.rows for script in scripts])
    cpu = np.concatenate([np.broadcast_to(np.asarray(script.cpu), script.rows.shape[:1]) for script in scripts])
    script_of = np.repeat(np.arange(len(scripts)), [script.rows.shape[0] for script in scripts])
    order = np.argsort(np.concatenate(keys), kind="stable")
    if order.size < num_rows:
        raise ValueError(f"scripts hold {order.size} rows where {num_rows} are needed")
    events = np.concatenate([cpu[order, None], rows[order]], axis=1).astype(np.int32)
    return events[_mix_accesses_into_calls(events[:, 1], script_of[order], len(scripts))][:num_rows]


def _turn_keys(script: Script, draws: Draws, skew: int) -> np.ndarray:
    num = script.rows.shape[0]
    if script.turn is None:
        return np.sort(np.arange(num, dtype=np.int64) * _KEY + draws.below(skew * _KEY, num))
    is_start = np.ones(num, dtype=bool)
    is_start[1:] = script.turn[1:] != script.turn[:-1]
    starts = np.flatnonzero(is_start)
    keys = np.sort(starts * _KEY + draws.below(skew * _KEY, starts.size))
    return keys[np.cumsum(is_start) - 1]


def _mix_accesses_into_calls(op: np.ndarray, script: np.ndarray, num_scripts: int) -> np.ndarray:
    """Return an order that moves accesses that directly follow a call of another script in between its rows.

    A row moves only past rows of that one call, so the order within each script stays.
    """
    num = op.size
    pos = np.arange(num, dtype=np.int64)
    is_call = np.isin(op, [int(kind) for kind in _CALLS])
    if num_scripts == 1 or not is_call.any():
        return pos
    continues = np.zeros(num, dtype=bool)
    continues[1:] = is_call[1:] & is_call[:-1] & (script[1:] == script[:-1])
    start = np.maximum.accumulate(np.where(is_call & ~continues, pos, -1))
    end = np.maximum.accumulate(np.where(is_call, pos, -1))
    blocks = is_call | (script == script[end])
    clear = np.maximum.accumulate(np.where(blocks, pos, -1)) == end
    after = start + (pos - end - 1) // (num_scripts - 1)
    moves = ~is_call & (end >= 0) & clear & (after < end)
    return np.argsort(np.where(moves, 2 * after + 1, 2 * pos), kind="stable")


def tick_positions(num_events: int, period: int, num_cpus: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the timer ticks among ``num_events`` events, ascending, and the CPU of each.

    Every CPU ticks once in ``period`` events, CPUs evenly staggered; period 0: no ticks.
    """
    if period == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if period < 2 * num_cpus:
        raise ValueError(f"workload.tick_period={period}: allowed are 0 or at least 2 events for each of {num_cpus} CPUs")
    cpu = np.arange(num_cpus, dtype=np.int64)
    offset = (cpu + 1) * period // num_cpus - 1
    positions = (np.arange(-(-num_events // period), dtype=np.int64)[:, None] * period + offset).ravel()
    cpus = np.broadcast_to(cpu, (positions.size // num_cpus, num_cpus)).ravel()
    return positions[positions < num_events], cpus[positions < num_events]


def rows_between_ticks(num_events: int, period: int, num_cpus: int) -> int:
    """Return how many of ``num_events`` events are not ticks."""
    return num_events - tick_positions(num_events, period, num_cpus)[0].size


def insert_ticks(events: np.ndarray, num_events: int, period: int, num_cpus: int) -> np.ndarray:
    """Return ``int32[num_events, 5]``: ``events`` in order, with the ticks between them."""
    positions, cpus = tick_positions(num_events, period, num_cpus)
    out = np.zeros((num_events, 5), dtype=np.int32)
    out[positions, 0] = cpus
    out[positions, 1] = int(Op.TICK)
    is_row = np.ones(num_events, dtype=bool)
    is_row[positions] = False
    out[is_row] = events
    return out
