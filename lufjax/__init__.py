"""lufjax: TLB shootdowns under lazy unmap flush policies, simulated in batches with JAX.

Importing the package touches no device and imports nothing heavy.
"""

from __future__ import annotations

__version__ = "0.1.0"
