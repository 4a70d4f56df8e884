"""Small integer functions that kernels share."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def log2_bucket(value: Array) -> Array:
    """Histogram bucket of a count: 0 -> 0, x -> 1 + floor(log2 x), at most 15."""
    return jnp.clip(32 - lax.clz(jnp.asarray(value, jnp.int32)), 0, 15)
