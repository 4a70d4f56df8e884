"""Strictness for every test: JAX's silent dtype conversions are errors, hypothesis is deterministic."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_ENABLE_X64", "0")
os.environ["LUFJAX_CACHE_DIR"] = "off"  # tests patch kernels: code of the whole ones must not answer for them

settings.register_profile("lufjax", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lufjax")
