"""Operations of our own in the jaxprs that are translated: reads of a machine's arrays, conditions to branch on, tables of computed values.

``pick`` and ``first`` are in the keys of a search, which XLA computes too: of many machines at once, so each has a rule for :func:`jax.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching

read_p = Primitive("read")
"""Reads an array of the machine: traced for the translation only, never run by XLA."""
split_p = Primitive("split")
"""A condition on which the translation branches: what follows is translated once for either value of it."""
pick_p = Primitive("pick")
"""``table[index]`` of a table of computed values ``int32[n, ...]``; 0 for an index outside, of which there is none where it is ``inside``.
Translated to a table in memory, but for columns of one constant."""
first_p = Primitive("first")
"""The first place of each number below ``count`` in ``int32[n]``; ``n`` for a number that is nowhere."""

split_p.def_abstract_eval(lambda condition: condition)
pick_p.def_abstract_eval(lambda table, index, *, inside: ShapedArray((*index.shape, *table.shape[1:]), table.dtype))
first_p.def_abstract_eval(lambda values, *, count: ShapedArray((count,), values.dtype))


@read_p.def_abstract_eval
def _read_shape(*index: Any, array: str, pattern: Any, size: Any, dtype: Any) -> Any:
    dynamic = np.broadcast_shapes(*(i.shape for i in index)) if index else ()
    kept = tuple(part[2] - part[1] for part in pattern if part[0] == "slice")
    return ShapedArray((*dynamic, *kept, *size[len(pattern) :]), dtype)


def _pick(table: Array, index: Array, *, inside: bool) -> Array:
    found = table.at[index].get(mode="clip")
    is_inside = ((index >= 0) & (index < len(table))).reshape(index.shape + (1,) * (table.ndim - 1))
    return found if inside else jnp.where(is_inside, found, 0)


def _first(values: Array, *, count: int) -> Array:
    is_at = values[None, :] == jnp.arange(count, dtype=values.dtype)[:, None]
    return jnp.where(is_at, jnp.arange(len(values), dtype=values.dtype), len(values)).min(axis=1)


def _of_many(function: Callable[..., Array], args: Any, dims: Any, **named: Any) -> tuple[Array, int]:
    return jax.vmap(partial(function, **named), in_axes=tuple(dims))(*args), 0


batching.primitive_batchers[pick_p] = partial(_of_many, _pick)
batching.primitive_batchers[first_p] = partial(_of_many, _first)
