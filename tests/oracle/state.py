"""State of one machine (docs/MODEL.md section 2) and its initial value, as plain objects, lists and sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .tlb import TlbLevel

FREE, USED, BATCH, HELD, FOREIGN, QUARANTINE, TAKEN = range(7)
READ, WRITE, MAYWRITE, SHARED, ANON = 1, 2, 4, 8, 16
Content = tuple[int, int]
NOTHING: Content = (-1, 0)
FOREIGN_DATA: Content = (-2, 0)
CORRUPT: Content = (-3, 0)
"""What a frame holds: (backing, version), or one of these three."""


class EngineFault(Exception):
    """A list of the machine is full; its behaviour after this is undefined."""


@dataclass
class Gather:
    """An open mapping call of one CPU: visited pages ``[vs, ve)``, pages to flush ``[cs, ce)``."""

    op: int
    vs: int
    ve: int
    cleared: bool = False
    cs: int = 0
    ce: int = 0
    held: list[int] = field(default_factory=list)

    def clear(self, vpn: int) -> None:
        """Note that the translation of ``vpn`` has to be flushed."""
        self.cs, self.ce = (min(self.cs, vpn), max(self.ce, vpn + 1)) if self.cleared else (vpn, vpn + 1)
        self.cleared = True


@dataclass
class Debt:
    """What is owed for a frame when it leaves the allocator."""

    owed: set[int]
    tag: int
    owner: int | None
    since: int
    tag_clock: int


@dataclass
class Cpu:
    """One CPU; ``loaded`` is the process whose page table is loaded, ``fault`` (vpn, pays) a fault that has not
    returned, ``taken`` a frame that is not handed out yet, with its debt."""

    loaded: int | None
    l1: TlbLevel
    l2: TlbLevel
    lazy: bool
    gen_done: list[int]
    ticks: int = 0
    gather: Gather | None = None
    pcp: list[int] = field(default_factory=list)
    covered: int = 0
    fault: tuple[int, bool] | None = None
    taken: tuple[int, Debt] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it is in a mapping call or a page fault that has not returned."""
        return self.gather is not None or self.fault is not None


@dataclass
class Promise:
    """What the process may rely on since the last mapping call on the page returned."""

    mapped: bool = False
    writable: bool = False
    backing: int | None = None


@dataclass
class Page:
    """One virtual page: its PTE (``frame`` is None while not present), its mapping, its promise."""

    vma: int | None = None
    backing: int | None = None
    present: bool = False
    writable: bool = False
    accessed: bool = False
    dirty: bool = False
    marker: bool = False
    frame: int | None = None
    promise: Promise = field(default_factory=Promise)
    epoch: int = 0
    changed: int = 0


@dataclass
class Process:
    """One address space."""

    pages: list[Page]
    next_trim: int
    cpumask: set[int] = field(default_factory=set)
    sweep: set[int] = field(default_factory=set)
    tlb_gen: int = 0
    pending: int = 0
    flushed: int = 0
    gathers: int = 0
    excl: int = 0
    va_debt: bool = False
    owed: set[int] = field(default_factory=set)
    clock: int = 0


@dataclass
class Frame:
    """One physical frame; ``page`` is the backing it was last made the home of."""

    rmap: list[tuple[int, int] | None]
    state: int = FREE
    page: int | None = None
    handed: int = 0
    content: Content = NOTHING
    refs: int = 0
    owed: set[int] = field(default_factory=set)
    tag: int = 0
    owner: int | None = None
    since: int = 0
    tag_clock: int = 0

    def mappings(self) -> list[tuple[int, int]]:
        """The (process, vpn) that map this frame, in slot order."""
        return [where for where in self.rmap if where is not None]


@dataclass
class Backing:
    """A file page or an anonymous id."""

    truth: int = 0
    stored: int = 0
    on_store: bool = False
    home: int | None = None
    harvested: bool = False
    parent: int | None = None
    origin: int | None = None
    shared: int = 0
    sharers: int = 0
    owed: set[int] = field(default_factory=set)
    clock: int = 0


class State:
    """Everything one machine holds; the rules are functions over it in the modules next to this one."""

    def __init__(self, sizes: dict[str, Any], params: dict[str, int], policy: dict[str, int], trace: dict[str, Any]) -> None:
        self.sizes, self.params, self.policy, self.vmas = sizes, params, policy, list(trace["vmas"])
        num_processes, num_file_pages = sizes["num_processes"], sizes["num_file_pages"]
        self.num_file_pages = num_file_pages
        self.now = 0
        loaded = [m if m >= 0 else None for m in trace["loaded"]]
        self.cpus = [Cpu(m, TlbLevel(**sizes["l1"]), TlbLevel(**sizes["l2"]), m is None, [0] * num_processes) for m in loaded]
        self.processes = [
            Process([Page() for _ in range(sizes["num_vpns"])], policy["trim_period"], {c for c, p in enumerate(loaded) if p == m})
            for m in range(num_processes)
        ]
        self.vma_flag = [False] * sizes["num_vmas"]
        self.frames = [Frame([None] * sizes["rmap_slots"]) for _ in range(sizes["num_frames"])]
        self.backings = [Backing(1, 1, True) for _ in range(num_file_pages)] + [Backing() for _ in range(sizes["num_anon"])]
        self.anon_pool = list(reversed(range(num_file_pages, num_file_pages + sizes["num_anon"])))
        self.free = list(range(params["fast_frames"]))
        self.slow = list(range(params["fast_frames"], params["frames_in_use"]))
        self.lru: list[int] = []
        self.lru_slow: list[int] = []
        self.batch: list[tuple[int, bool]] = []
        self.U: set[int] = set()
        self.D: set[int] = set()
        self.G: set[int] = set()
        self.need_flush = self.kswapd_on = False
        self.foreign: list[int] = []
        self.quarantine: list[tuple[int, int, int, int]] = []
        self.ugen, self.ugen_done, self.unmap_clock = 1, 0, 1
        for m, process in enumerate(self.processes):
            for v, page in enumerate(process.pages):
                self._map_at_start(page, trace["page_vma"][m][v], trace["page_backing"][m][v])

    def _map_at_start(self, page: Page, vma: int, backing: int) -> None:
        if vma < 0:
            return
        if backing < 0:
            backing = self.anon_pool.pop()
            self.backings[backing].truth = self.backings[backing].stored = 1
        page.vma, page.backing = vma, backing
        page.promise = self.mapping_of(page)

    def lru_of(self, f: int) -> list[int]:
        """The inactive list of the tier of frame ``f``."""
        return self.lru if f < self.params["fast_frames"] else self.lru_slow

    def is_anon(self, backing: int) -> bool:
        """Whether ``backing`` belongs to the anonymous pool."""
        return backing >= self.num_file_pages

    def is_gone(self, backing: int) -> bool:
        """Whether ``backing`` is a page beyond the end of its file."""
        return not self.is_anon(backing) and not self.backings[backing].on_store

    def is_lazyfree(self, backing: int) -> bool:
        """Whether the content of an anonymous ``backing`` may be dropped instead of written out."""
        return self.is_anon(backing) and self.backings[backing].harvested and not self.backings[backing].on_store

    def is_copy_on_write(self, page: Page) -> bool:
        """Whether a store to a page has to copy it, because other pages have the same anonymous content."""
        return page.vma is not None and not self.flags(page) & SHARED and self.has_sharers(page.backing)

    def has_sharers(self, backing: int) -> bool:
        """Whether ``backing`` is anonymous and more than one page has it."""
        return self.is_anon(backing) and self.backings[backing].sharers > 0

    def flags(self, page: Page) -> int:
        """VMA flags of a page, 0 if it has no VMA."""
        return 0 if page.vma is None else self.vmas[page.vma]

    def mapping_of(self, page: Page) -> Promise:
        """The promise that the page's mapping makes now."""
        if page.vma is None:
            return Promise()
        return Promise(True, bool(self.flags(page) & WRITE) and not self.is_copy_on_write(page), page.backing)

    def pages(self) -> list[tuple[int, int, Page]]:
        """Every (process, vpn, page), in order."""
        return [(m, v, page) for m, process in enumerate(self.processes) for v, page in enumerate(process.pages)]

    def shared_file(self, page: Page) -> int | None:
        """The file page that a page maps shared, if it does."""
        return page.backing if self.flags(page) & SHARED and page.backing is not None and not self.is_anon(page.backing) else None

    def page(self, m: int, vpn: int) -> Page:
        """Page ``vpn`` of process ``m``."""
        return self.processes[m].pages[vpn]
