"""Ways to run the kernels on many machines: native code, a GPU, XLA; with the same bits."""

BACKENDS = ("auto", "native", "cuda", "xla")
"""Words of ``engine.backend``."""
