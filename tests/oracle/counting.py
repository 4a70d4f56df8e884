"""Counters, histograms and violations of one machine (docs/MODEL.md sections 8 and 10)."""

from __future__ import annotations

NAMES = (
    "accesses", "loads", "stores", "pgfault", "pgmajfault", "segv", "sigbus", "spurious_fault", "stlb_hit", "dtlb_load_misses",
    "dtlb_store_misses", "walk_completed", "pgrescued", "pglazyfree", "pglazyfreed", "pgmigrate_success",
    "pgmigrate_fail", "pgpromote_success", "pgdemote_kswapd", "pgdemote_direct", "alloc_fail", "allocstall", "pgscan", "pgrotated",
    "pgsteal_kswapd", "pgsteal_direct", "pgpgout", "nr_tlb_remote_flush", "nr_tlb_remote_flush_received", "nr_tlb_local_flush_all",
    "nr_tlb_local_flush_one", "needless", "ipi_reclaim", "ipi_mapping", "ipi_fault", "ipi_alloc", "deferred_unmaps", "absorbed", "recycled",
    "discharges", "discharged_by_foreign", "give_ups", "sweeps", "switches", "switch_flushes", "nr_gathers", "atomic_refused", "tolerated",
    "tolerated_epoch", "events", "events_disabled", "nr_pending",
)  # fmt: skip
HISTOGRAMS = ("ipis_per_alloc", "age_at_use", "age_at_discharge")
NUM_BUCKETS = 16
REUSE, MAPPING, PERMISSION, LOST_STORE, OLD_VALUE, ATOMIC_FLUSH = range(6)
NUM_CLASSES = 6


def bucket(x: int) -> int:
    """Bucket of a histogram: 0 for 0, then 1 + floor(log2 x), at most 15."""
    return min(x.bit_length(), NUM_BUCKETS - 1)


class Counts:
    """Everything that is counted."""

    def __init__(self, num_cpus: int) -> None:
        self.scalars = dict.fromkeys(NAMES, 0)
        self.received = [0] * num_cpus
        self.histograms = {name: [0] * NUM_BUCKETS for name in HISTOGRAMS}
        self.violations = {"loads": [0] * NUM_CLASSES, "stores": [0] * NUM_CLASSES}
        self.first = [[0, 0, 0, 0] for _ in range(NUM_CLASSES)]

    def bump(self, name: str, by: int = 1) -> None:
        """Add ``by`` to a counter; the name must exist."""
        self.scalars[name] = self.scalars[name] + by

    def observe(self, histogram: str, value: int, weight: int = 1) -> None:
        """Add ``weight`` to the bucket of ``value``."""
        self.histograms[histogram][bucket(value)] += weight

    def violate(self, kind: int, is_store: bool, n: int, where: tuple[int, int, int, int]) -> None:
        """Count ``n`` violations of a class; ``where`` is (now, cpu, process, vpn)."""
        self.violations["stores" if is_store else "loads"][kind] += n
        if self.first[kind][0] == 0:
            self.first[kind] = list(where)
