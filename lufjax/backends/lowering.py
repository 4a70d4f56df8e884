"""Translate a jaxpr of small integer arrays to LLVM: every element is a scalar, shapes exist only while translating."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from llvmlite import ir

from lufjax.backends.operations import (
    I32,
    I64,
    REDUCTIONS,
    SCALARS,
    SHAPES,
    Value,
    all_equal,
    as_constant,
    elements,
    is_constant,
    number_of,
    scalar,
)
from lufjax.backends.primitives import split_p


class Name(str):
    """The name of a value of a flattened jaxpr."""

    __slots__ = ()


class Step(NamedTuple):
    """An equation, what it takes (names, or arrays of constants) and the names of what it makes."""

    eqn: Any
    ins: list[Any]
    outs: list[Any]


class Memory(Protocol):
    """Where the arrays of a machine are. ``index``: the type of offsets."""

    index: ir.IntType

    def pointer(self, builder: Any, array: str) -> Value:
        """Emit the address of the first element of an array."""
        ...


class Lowering:
    """Translates equations into ``builder``; values are NumPy arrays of LLVM scalars.

    Args:
        memory: where arrays are. fixed: of some arrays, the elements whose value is known, as objects; None for the others.
    """

    def __init__(self, builder: Any, memory: Memory, fixed: Mapping[str, np.ndarray] | None = None) -> None:
        self.builder, self._memory, self._fixed = builder, memory, fixed or {}
        self._pointers: dict[str, Value] = {}
        self._tables: dict[tuple[tuple[int, int], ...], Value] = {}
        self.loaded: dict[tuple[str, tuple[int, ...]], Value] = {}

    def pointer(self, array: str) -> Value:
        """Base of an array of this machine."""
        if array not in self._pointers:
            self._pointers[array] = self._memory.pointer(self.builder, array)
        return self._pointers[array]

    def run(self, closed: ClosedJaxpr, finish: Callable[[list[np.ndarray]], None]) -> None:
        """Translate a closed jaxpr without arguments; ``finish`` takes its results and ends the block, once for each way through the splits.

        A value is emitted where it is first needed: before a split only what its condition depends on, the rest on the ways that use it.
        """
        results: list[Any] = []
        steps = list(_flatten(closed.jaxpr, closed.consts, [], "", results))
        self._run([step for step in steps if step.eqn.primitive is split_p], {out: step for step in steps for out in step.outs}, {}, results, finish)

    def _run(
        self, splits: list[Step], made_by: dict[Any, Step], known: dict[Any, np.ndarray], results: list[Any],
        finish: Callable[[list[np.ndarray]], None],
    ) -> None:  # fmt: skip
        for number, split in enumerate(splits):
            condition = self._force(split.ins, made_by, known)[0].item()
            if isinstance(condition, ir.Constant):
                continue
            yes, no = (self.builder.append_basic_block("split") for _ in range(2))
            self.builder.cbranch(condition, yes, no)
            pointers, tables, loaded = self._pointers, self._tables, self.loaded
            for block, value in ((yes, True), (no, False)):
                self.builder.position_at_end(block)
                self._pointers, self._tables, self.loaded = dict(pointers), dict(tables), dict(loaded)
                decided = known | {split.outs[0]: elements(np.asarray(value), np.dtype(bool))}
                self._run(splits[number + 1 :], made_by, decided, results, finish)
            return
        finish(self._force(results, made_by, known))

    def _force(self, wanted: list[Any], made_by: dict[Any, Step], known: dict[Any, np.ndarray]) -> list[np.ndarray]:
        """Values, with all that they depend on and that is not ``known`` yet emitted here."""
        open_ = [atom for atom in reversed(wanted) if isinstance(atom, Name)]
        while open_:
            name = open_[-1]
            if name in known:
                open_.pop()
                continue
            step = made_by[name]
            needed = _needed(step, known)
            missing = [atom for atom in needed if isinstance(atom, Name) and atom not in known]
            if missing:
                open_.append(missing[0])
                continue
            args = [known[atom] if isinstance(atom, Name) else atom for atom in needed]
            if len(needed) < len(step.ins):
                known[name] = np.broadcast_to(args[-1], step.eqn.outvars[0].aval.shape)
            else:
                known.update(zip(step.outs, args if step.eqn.primitive is split_p else self._equation(step.eqn, args), strict=True))
        return [known[atom] if isinstance(atom, Name) else atom for atom in wanted]

    def _equation(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        name, params = eqn.primitive.name, eqn.params
        if name == "read":
            return [self._read(args, **params)]
        if name == "pick":
            return [self._pick(args[0], args[1], params["inside"])]
        if name == "first":
            return [self._first(args[0], params["count"])]
        dtype_in = eqn.invars[0].aval.dtype if eqn.invars else eqn.outvars[0].aval.dtype
        if name in SHAPES:
            return [SHAPES[name](args, params, eqn.outvars[0].aval)]
        if name in REDUCTIONS:
            return [self._fold(REDUCTIONS[name], args[0], params["axes"], dtype_in)]
        if name == "unstack":
            return [np.asarray(part, object) for part in np.moveaxis(args[0], params["axis"], 0)]
        if name == "reduce":
            return [self._fold(params["jaxpr"].eqns[0].primitive.name, args[0], params["dimensions"], dtype_in)]
        if name in ("argmin", "argmax"):
            return [self._arg(name, args[0], params["axes"], dtype_in)]
        if name not in SCALARS:
            raise RuntimeError(f"no translation of the operation {name}: {eqn}")
        out = eqn.outvars[0].aval
        spread = [np.broadcast_to(arg, out.shape) for arg in args]
        result = np.empty(out.shape, object)
        for place in np.ndindex(*out.shape):
            result[place] = scalar(name, self.builder, [arg[place] for arg in spread], dtype_in, out.dtype, params)
        return [result]

    def _fold(self, operation: str, arg: np.ndarray, axes: tuple[int, ...], dtype: Any) -> np.ndarray:
        moved = np.moveaxis(arg, axes, range(len(axes)))
        flat = moved.reshape(-1, *moved.shape[len(axes) :])
        result = np.empty(flat.shape[1:], object)
        for place in np.ndindex(*result.shape):
            total = flat[(0, *place)]
            for row in range(1, flat.shape[0]):
                total = scalar(operation, self.builder, [total, flat[(row, *place)]], dtype, dtype, {})
            result[place] = total
        return result

    def _arg(self, name: str, arg: np.ndarray, axes: tuple[int, ...], dtype: Any) -> np.ndarray:
        rows = np.moveaxis(arg, axes[0], 0)
        result = np.empty(rows.shape[1:], object)
        for place in np.ndindex(*result.shape):
            best, index = rows[(0, *place)], ir.Constant(I32, 0)
            for row in range(1, rows.shape[0]):
                compare = "lt" if name == "argmin" else "gt"
                better = SCALARS[compare](self.builder, [rows[(row, *place)], best], dtype, np.bool_, {})
                best = self.builder.select(better, rows[(row, *place)], best)
                index = self.builder.select(better, ir.Constant(I32, row), index)
            result[place] = index
        return result

    def _read(self, index: list[np.ndarray], array: str, pattern: Any, size: Any, dtype: Any) -> np.ndarray:
        dynamic = np.broadcast_shapes(*(i.shape for i in index)) if index else ()
        clamped = [np.broadcast_to(self._clamp(i, n), dynamic) for i, n in zip(index, _dynamic_sizes(pattern, size), strict=True)]
        kept = [range(part[1], part[2]) for part in pattern if part[0] == "slice"] + [range(n) for n in size[len(pattern) :]]
        result = np.empty((*dynamic, *(len(r) for r in kept)), object)
        for place in np.ndindex(*dynamic):
            for inner in np.ndindex(*(len(r) for r in kept)):
                chosen = [r[i] for r, i in zip(kept, inner, strict=True)]
                known = None if pattern or array not in self._fixed else self._fixed[array][tuple(chosen)]
                if known is not None:
                    result[(*place, *inner)] = as_constant(known, np.int32)
                    continue
                value = self.builder.load(self.address(array, pattern, size, [c[place] for c in clamped], chosen))
                result[(*place, *inner)] = value
                if not pattern:
                    self.loaded[array, tuple(chosen)] = value
        return result

    def _table(self, rows: Sequence[Any]) -> Value:
        """An array of the function that holds these scalars."""
        b = self.builder
        with b.goto_entry_block():
            place = b.alloca(I32, size=I64(len(rows)))
        for number, value in enumerate(rows):
            b.store(value, b.gep(place, [I64(number)]))
        return place

    def _kept_table(self, rows: Sequence[Any]) -> Value:
        """A table that is not written to: there is one for all who read the same scalars."""
        names = tuple((row.constant, 0) if isinstance(row, ir.Constant) else (0, id(row)) for row in rows)
        if names not in self._tables:
            self._tables[names] = self._table(rows)
        return self._tables[names]

    def _inside(self, index: Value, count: int) -> Value:
        """The index, or ``count`` for one outside."""
        return self.builder.sext(self.builder.select(self.builder.icmp_unsigned("<", index, I32(count)), index, I32(count)), I64)

    def _pick(self, table: np.ndarray, index: np.ndarray, inside: bool) -> np.ndarray:
        b, count, width = self.builder, len(table), int(np.prod(table.shape[1:], dtype=int))
        rows = np.concatenate([table.reshape(count, width), np.full((0 if inside else 1, width), I32(0), object)])
        constant = [column[0] if all_equal(column) else None for column in rows.T]
        place, result = None, np.empty((*index.shape, width), object)
        for at in np.ndindex(*index.shape):
            if isinstance(index[at], ir.Constant):
                result[at] = rows[min(number_of(index[at]) & 0xFFFFFFFF, count)]
                continue
            row = None
            for column in range(width):
                if constant[column] is not None:
                    result[(*at, column)] = constant[column]
                    continue
                place = self._kept_table(list(rows.ravel())) if place is None else place
                row = b.mul(b.sext(index[at], I64) if inside else self._inside(index[at], count), I64(width)) if row is None else row
                result[(*at, column)] = b.load(b.gep(place, [b.add(row, I64(column))]))
        return result.reshape((*index.shape, *table.shape[1:]))

    def _first(self, values: np.ndarray, count: int) -> np.ndarray:
        b = self.builder
        place = self._table([I32(len(values))] * (count + 1))
        for number in reversed(range(len(values))):
            if isinstance(values[number], ir.Constant) and not 0 <= number_of(values[number]) < count:
                continue
            b.store(I32(number), b.gep(place, [self._inside(values[number], count)]))
        return np.array([b.load(b.gep(place, [I64(number)])) for number in range(count)], object)

    def _clamp(self, index: np.ndarray, size: int) -> np.ndarray:
        result = np.empty(index.shape, object)
        for place in np.ndindex(*index.shape):
            value = index[place]
            if not isinstance(value, ir.Constant):
                is_negative = self.builder.icmp_signed("<", value, I32(0))
                value = self.builder.select(is_negative, I32(0), value)
                value = self.builder.select(self.builder.icmp_signed(">=", value, I32(size)), I32(size - 1), value)
            result[place] = value
        return result

    def address(self, array: str, pattern: Any, size: Any, dynamic: Any, kept: list[int]) -> Value:
        """Address of one element: ``pattern`` says which dimensions are indexed by values, by constants, or by ``kept``."""
        rest, inner, offset, b = iter(dynamic), iter(kept), None, self.builder
        whole = self._memory.index
        constant: Any = 0
        for dimension in range(len(size)):
            part: Any = pattern[dimension] if dimension < len(pattern) else ("slice",)
            stride = int(np.prod(size[dimension + 1 :], dtype=np.int64))
            if part[0] == "dynamic":
                number = next(rest)
                term = b.mul(b.sext(number, I64) if whole == I64 else number, whole(stride))
                offset = term if offset is None else b.add(offset, term)
            else:
                constant += (part[1] if part[0] == "static" else next(inner)) * stride
        total = whole(constant) if offset is None else b.add(offset, whole(constant))
        return b.gep(self.pointer(array), [total], inbounds=True)


def _needed(step: Step, known: Mapping[Any, np.ndarray]) -> list[Any]:
    """What an equation takes, as far as is known yet; if not all, the last one is its result: of a choice the chosen, of AND and OR what decides."""
    name, ins = step.eqn.primitive.name, step.ins
    if name == "select_n":
        chosen = _constant_of(ins[0], known)
        return ins if chosen is None else [ins[0], ins[1 + chosen]]
    if name in ("and", "or") and step.eqn.outvars[0].aval.dtype == np.bool_:
        deciding = [atom for atom in ins if _constant_of(atom, known) == (name == "or")]
        return deciding[:1] or ins
    return ins


def _constant_of(atom: Any, known: Mapping[Any, np.ndarray]) -> int | None:
    """The number that all elements of a value are, if that is known."""
    flat = list((known.get(atom, np.zeros(0, object)) if isinstance(atom, Name) else atom).ravel())
    return number_of(flat[0]) if flat and all_equal(flat) else None


def _flatten(jaxpr: Any, consts: Sequence[Any], args: list[Any], prefix: str, results: list[Any]) -> Iterator[Step]:
    """The equations of a jaxpr, those of called ones in their place; names of values are made unique by ``prefix``. ``results`` is filled."""
    known: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
    known.update((var, elements(np.asarray(c), np.asarray(c).dtype)) for var, c in zip(jaxpr.constvars, consts, strict=True))

    def atom_of(atom: Any) -> Any:
        return elements(np.asarray(atom.val), np.asarray(atom.val).dtype) if isinstance(atom, Literal) else known[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        ins: list[Any] = [atom_of(atom) for atom in eqn.invars]
        outs: list[Any] = []
        if "jaxpr" in eqn.params and eqn.primitive.name in ("jit", "pjit", "closed_call", "custom_jvp_call"):
            inner = eqn.params["jaxpr"]
            yield from _flatten(inner.jaxpr, inner.consts, ins, f"{prefix}{number}.", outs)
        else:
            outs = [Name(f"{prefix}{number}:{place}") for place in range(len(eqn.outvars))]
            yield Step(eqn, ins, outs)
        known.update(zip(eqn.outvars, outs, strict=True))
    results.extend(atom_of(atom) for atom in jaxpr.outvars)


def _dynamic_sizes(pattern: Any, size: Any) -> list[int]:
    return [n for part, n in zip(pattern, size, strict=False) if part[0] == "dynamic"]


def emit_writes(lowering: Lowering, flat: list[np.ndarray], targets: list[Any], closed: ClosedJaxpr, arrays: dict[str, Any]) -> None:
    """Store each write where it is enabled. ``flat`` holds, write by write: dynamic indices, value, enabled."""
    rest = iter(zip(flat, closed.out_avals, strict=True))
    written = Counter(array for array, _, _ in targets)
    for array, is_add, index in targets:
        size, _ = arrays[array]
        dynamic = [next(rest)[0] for part in index if part is None]
        (value, _), (enabled, _) = next(rest), next(rest)
        pattern: Any = tuple(("dynamic",) if part is None else ("slice", *part.indices(n)[:2]) for part, n in zip(index, size, strict=False))
        outer = np.broadcast_shapes(enabled.shape, *(d.shape for d in dynamic))
        kept = [range(part[1], part[2]) for part in pattern if part[0] == "slice"] + [range(n) for n in size[len(pattern) :]]
        window = (*outer, *(len(r) for r in kept))
        value = np.broadcast_to(value.reshape(value.shape + (1,) * (len(window) - value.ndim)), window)
        for place in np.ndindex(*outer):
            predicate = np.broadcast_to(enabled, outer)[place]
            chosen_index = [np.broadcast_to(d, outer)[place] for d in dynamic]
            known = lowering.loaded if written[array] == 1 and not pattern else {}
            _store(lowering, array, pattern, size, chosen_index, kept, value[place], predicate, is_add, known)


def _store(
    lowering: Lowering, array: str, pattern: Any, size: Any, dynamic: Any, kept: list[range], value: Any, predicate: Any,
    is_add: bool, known: dict[tuple[str, tuple[int, ...]], Value],
) -> None:  # fmt: skip
    def body() -> None:
        for inner in np.ndindex(*(len(r) for r in kept)):
            chosen = [r[i] for r, i in zip(kept, inner, strict=True)]
            new = value[inner] if kept else value
            new = new if isinstance(new, ir.Value) else new.item()
            if is_constant(new, 0) if is_add else new is known.get((array, tuple(chosen))):
                continue
            place = lowering.address(array, pattern, size, dynamic, chosen)
            lowering.builder.store(lowering.builder.add(lowering.builder.load(place), new) if is_add else new, place)

    lowering.pointer(array)
    if isinstance(predicate, ir.Constant):
        if predicate.constant:
            body()
        return
    with lowering.builder.if_then(predicate):
        body()
