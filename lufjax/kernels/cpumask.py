"""Sets of CPUs as ``uint32`` words: CPU c is bit c % 32 of word c // 32."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def single(cpu: Array, num_words: int) -> Array:
    """The set {cpu}, ``uint32[num_words]``."""
    bit = jnp.left_shift(jnp.uint32(1), (cpu & 31).astype(jnp.uint32))
    return jnp.where(jnp.arange(num_words) == cpu >> 5, bit, jnp.uint32(0))


def has(words: Array, cpu: Array) -> Array:
    """Whether ``cpu`` is in the set."""
    return ((words & single(cpu, words.shape[-1])) != 0).any(-1)


def is_empty(words: Array) -> Array:
    """Whether the set has no CPU."""
    return (words == 0).all(-1)


def to_bits(words: Array, num_cpus: int) -> Array:
    """``bool[num_cpus]`` membership."""
    bits = [jnp.right_shift(words[index], jnp.arange(32, dtype=jnp.uint32)) & 1 for index in range(words.shape[0])]
    return jnp.concatenate(bits)[:num_cpus] != 0


def from_bits(bits: Array, num_words: int) -> Array:
    """Words of ``bool[..., num_cpus]``."""
    weighted = jnp.where(bits, jnp.left_shift(jnp.uint32(1), jnp.arange(bits.shape[-1], dtype=jnp.uint32) % 32), jnp.uint32(0))
    words = [weighted[..., 32 * index : 32 * index + 32].sum(-1, dtype=jnp.uint32) for index in range(num_words)]
    return jnp.stack(words, -1)


def part(words: Array, base: Array, num_cpus: int) -> Array:
    """``bool[num_cpus]`` membership of CPUs ``base ..``, which lie in one word."""
    word = jnp.where(jnp.arange(words.shape[0]) == base >> 5, words, jnp.uint32(0)).sum(dtype=jnp.uint32)
    shifts = ((base & 31) + jnp.arange(num_cpus)).astype(jnp.uint32)
    return (jnp.right_shift(word, shifts) & 1) != 0


def place(bits: Array, base: Array, num_words: int) -> Array:
    """Words of ``bool[..., n]`` that stand for CPUs ``base ..`` (in one word)."""
    shifts = ((base & 31) + jnp.arange(bits.shape[-1])).astype(jnp.uint32)
    word = jnp.where(bits, jnp.left_shift(jnp.uint32(1), shifts), jnp.uint32(0)).sum(-1, dtype=jnp.uint32)
    return jnp.where(jnp.arange(num_words) == base >> 5, word[..., None], jnp.uint32(0))
