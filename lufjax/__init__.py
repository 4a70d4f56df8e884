"""lufjax: TLB shootdowns under lazy unmap flush policies, simulated in batches with JAX.

A lane is one machine: CPUs with TLBs, page tables, reclaim, an allocator, and a flush policy that is a record of rules. Thousands of lanes
run the same events under different policies, CPU counts, memory sizes and seeds; interrupts are counted, and every access through a stale
TLB entry is judged.

* :mod:`lufjax.sweeps.sweep`: a run, from a validated config to ``results.nc`` (``lufjax run``).
* :mod:`lufjax.scenarios.scenario`: a few events by hand, with a timeline (``lufjax scenario``).
* :mod:`lufjax.engine`: ``simulate`` for many machines through traces; ``Machine`` for one, stepped by hand.
* :mod:`lufjax.policy`, :mod:`lufjax.presets`: the record of rules, and reading one.
* :mod:`lufjax.workloads`: traces.

``docs/MODEL.md`` says what a machine does, ``docs/ARCHITECTURE.md`` what is where. Importing the package touches no device and imports
nothing heavy.
"""

from __future__ import annotations

__version__ = "0.1.0"
