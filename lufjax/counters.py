"""Names of everything a lane counts: name -> (unit, long name). Integers; docs/MODEL.md section 10."""

from __future__ import annotations

SCALARS: dict[str, tuple[str, str]] = {
    "accesses": ("accesses", "loads and stores issued"),
    "loads": ("accesses", "loads issued"),
    "stores": ("accesses", "stores issued"),
    "pgfault": ("faults", "page faults"),
    "pgmajfault": ("faults", "page faults that read the backing store"),
    "segv": ("faults", "faults without a usable VMA (SIGSEGV)"),
    "sigbus": ("faults", "faults on a file page beyond the end of its file (SIGBUS)"),
    "spurious_fault": ("faults", "write faults through a stale read-only entry whose PTE is writable"),
    "stlb_hit": ("accesses", "accesses that missed L1 and hit the L2 TLB"),
    "dtlb_load_misses": ("accesses", "loads that missed both TLB levels"),
    "dtlb_store_misses": ("accesses", "stores that missed both TLB levels"),
    "walk_completed": ("walks", "page walks that found a usable PTE"),
    "pgrescued": ("pages", "pages taken back from the unmap batch by a fault"),
    "alloc_fail": ("pages", "allocations that found no frame"),
    "allocstall": ("stalls", "allocations that had to reclaim directly"),
    "pgscan": ("pages", "inactive-list entries examined"),
    "pgrotated": ("pages", "examined pages given a second chance"),
    "pgsteal_kswapd": ("pages", "pages unmapped by background reclaim"),
    "pgsteal_direct": ("pages", "pages unmapped by direct reclaim"),
    "pgpgout": ("pages", "pages written to the backing store"),
    "nr_tlb_remote_flush": ("shootdowns", "shootdowns initiated"),
    "nr_tlb_remote_flush_received": ("interrupts", "flush functions run for another CPU (the TLB row of /proc/interrupts)"),
    "nr_tlb_local_flush_all": ("flushes", "full flushes on the initiating CPU"),
    "nr_tlb_local_flush_one": ("pages", "pages flushed one by one on the initiating CPU"),
    "needless": ("interrupts", "remote flush functions that found the generation current"),
    "ipi_reclaim": ("interrupts", "interrupts sent by reclaim"),
    "ipi_mapping": ("interrupts", "interrupts sent by mapping calls"),
    "ipi_fault": ("interrupts", "interrupts sent by page faults"),
    "ipi_alloc": ("interrupts", "interrupts sent by allocation"),
    "deferred_unmaps": ("pages", "unmaps whose flush was deferred"),
    "absorbed": ("pages", "debts found paid by somebody else's flush at take-off"),
    "recycled": ("pages", "frames handed to their old owner without a flush"),
    "discharges": ("flushes", "flushes that paid a debt"),
    "discharged_by_foreign": ("flushes", "debts paid by an allocation outside the process"),
    "give_ups": ("flushes", "deferrals ended early by a flush"),
    "sweeps": ("flushes", "lazy sweeps executed at a tick or switch"),
    "switches": ("switches", "context switches to another process"),
    "switch_flushes": ("flushes", "flushes at a context switch"),
    "nr_gathers": ("calls", "mapping calls finished"),
    "atomic_refused": ("frames", "frames that an atomic allocation refused because they owed a flush"),
    "tolerated": ("accesses", "stale accesses that read the right content"),
    "tolerated_epoch": ("accesses", "tolerated stale accesses although the mapping changed since"),
    "events": ("events", "events executed"),
    "events_disabled": ("events", "events that were not enabled"),
}
HISTOGRAMS: dict[str, tuple[str, str]] = {
    "ipis_per_alloc": ("allocations", "allocations by the interrupts they sent (log2 bucket)"),
    "age_at_use": ("accesses", "stale accesses by age of the stale entry in events (log2 bucket)"),
    "age_at_discharge": ("flushes", "discharges by age of the debt in events (log2 bucket)"),
}
GAUGES: dict[str, tuple[str, str]] = {"nr_pending": ("frames", "free frames that carry a debt")}
NUM_BUCKETS = 16
NUM_CLASSES = 6
