"""Sets of CPUs as ``uint32`` words: CPU c is bit c % 32 of word c // 32."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def single(cpu: Array, num_words: int) -> Array:
    """The set {cpu}, ``uint32[num_words]``."""
    bit = jnp.left_shift(jnp.uint32(1), (cpu & 31).astype(jnp.uint32))
    return jnp.where(jnp.arange(num_words) == cpu // 32, bit, jnp.uint32(0))


def has(words: Array, cpu: Array) -> Array:
    """Whether ``cpu`` is in the set."""
    return ((words & single(cpu, words.shape[-1])) != 0).any(-1)


def is_empty(words: Array) -> Array:
    """Whether the set has no CPU."""
    return (words == 0).all(-1)


def to_bits(words: Array, num_cpus: int) -> Array:
    """``bool[num_cpus]`` membership."""
    cpus = jnp.arange(num_cpus)
    return (jnp.right_shift(words[cpus // 32], (cpus % 32).astype(jnp.uint32)) & 1) != 0


def from_bits(bits: Array, num_words: int) -> Array:
    """Words of ``bool[..., num_cpus]``."""
    num_cpus = bits.shape[-1]
    pad = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, num_words * 32 - num_cpus)])
    grouped = pad.reshape(*bits.shape[:-1], num_words, 32).astype(jnp.uint32)
    return (grouped << jnp.arange(32, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
