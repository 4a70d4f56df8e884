/* The machine of docs/MODEL.md, sections 2 to 9, for SPIN. One process; shared file mappings; roomy TLBs; scripted reclaim; no switches.
 *
 * machine.h (see spin.py) gives the sizes C V F R NF BATCH_SIZE PCP_BATCH PCP_HIGH, named as in section 1; the policy, a macro RULE_IS_WORD for each
 * rule and numbers by their names; and the start: LOADED (the CPUs that run the process; the others are idle), VMA BACKING MAPPED PERMITTED of the
 * pages, READ_VMAS WRITE_VMAS MAYWRITE_VMAS, FREE_LIST. events.h lists the alternatives of the one loop.
 *
 * An event is one d_step, so that only states between events are stored. An event that violates changes nothing: an assertion fails for each
 * class, and the state after it is never stored. Numbers that grow are kept as what is asked of them:
 *   now          of a TLB entry: whether its frame was handed out, or its promise advanced, since it was filled
 *   versions     ranks within a backing, over truth, stored and the frames that hold it; the oldest is 1
 *   tlb_gen      how far each CPU is behind; 2 for more
 *   pending      whether it differs from flushed
 *   unmap_clock  of each debt: which CPUs were covered since it arose
 *   tag          0 none, 1 paid, 2 of the open generation
 * Lists are arrays from their head or oldest, 0 beyond their end. Sets of CPUs, VMAs or PTE bits are bytes.
 */
#include "machine.h"

#define NONE 255
#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)

/* Frame states; contents that are no backing. */
#define FREE 0
#define USED 1
#define BATCHED 2
#define FOREIGN 4
#define NOTHING NONE
#define FOREIGN_CONTENT 254
#define CORRUPT 253
/* PTE and TLB bits. */
#define PRESENT 1
#define WRITABLE 2
#define ACCESSED 4
#define DIRTY 8
#define MARKER 16
/* TLB only. */
#define REUSED 32
#define ADVANCED 64

/* CPU: TLB entries by cpu * V + vpn (PRESENT WRITABLE DIRTY REUSED ADVANCED); gather; per-CPU list. */
byte tlb[C * V], tlb_frame[C * V];
byte behind[C];
bit open[C], cleared[C];
byte vs[C], ve[C], cs[C], ce[C], num_held[C], held[C * V];
byte num_pcp[C], pcp[C * F];
bit pending;
/* Page. */
byte pte[V], pte_frame[V];
byte vma[V] = VMA;
byte backing[V] = BACKING;
byte promised[V] = BACKING;
bit mapped[V] = MAPPED;
bit permitted[V] = PERMITTED;
byte vma_flags;
/* Frame; rmap slots hold vpn + 1. */
byte state[F], page[F] = NONE, content[F] = NOTHING, version[F], refs[F], owed[F], covered[F], tag[F], rmap[F * R];
/* Backing. */
byte truth[NF] = 1, stored[NF] = 1, home[NF] = NONE;
bit harvested[NF];
/* Machine. */
byte num_free = F;
byte free[F] = FREE_LIST;
byte num_lru, lru[F], num_batch, batch[BATCH_SIZE], num_foreign, foreign[F];
bit deferred_entry[BATCH_SIZE];
byte U, D, G;
bit need_flush;

/* Only within an event; 0 between events. */
byte e, f, g, h, i, j, k, n, t, v, w, slot;
int seen;
bit any_writable, any_dirty, queued, alone, deferred, ok, exact, named, dropped, is_reuse, is_mapping, is_permission, is_lost_store, is_old_value;

inline forget() {
  e = 0; f = 0; g = 0; h = 0; i = 0; j = 0; k = 0; n = 0; t = 0; v = 0; w = 0; slot = 0; seen = 0;
  any_writable = 0; any_dirty = 0; queued = 0; alone = 0; deferred = 0; ok = 0; exact = 0; named = 0; dropped = 0;
  is_reuse = 0; is_mapping = 0; is_permission = 0; is_lost_store = 0; is_old_value = 0
}

/* A violation of a class, or, as 1, an event with any. */
#if QUIET
#define report(is_violation) skip
#else
#define report(is_violation) assert(!(is_violation))
#endif

/* Lists; macros, because an inline takes no arrays. */
#define append(list, count, x) list[count] = x; count++

#define push_head(list, base, count, x) \
  k = count; \
  do \
  :: k > 0 -> list[(base) + k] = list[(base) + k - 1]; k-- \
  :: else -> break \
  od; \
  list[base] = x; count++

#define remove_at(list, base, count, at) \
  k = at; count--; \
  do \
  :: k < count -> list[(base) + k] = list[(base) + k + 1]; k++ \
  :: else -> break \
  od; \
  list[(base) + count] = 0

inline leave_lru(x) {
  n = 0;
  do
  :: lru[n] != x -> n++
  :: else -> break
  od;
  remove_at(lru, 0, num_lru, n)
}

/* Versions of every backing become ranks again. */
inline rank() {
  j = 0;
  do
  :: j < NF ->
     seen = BIT(truth[j]) | BIT(stored[j]);
     k = 0;
     do
     :: k < F -> if :: content[k] == j -> seen = seen | BIT(version[k]) :: else fi; k++
     :: else -> break
     od;
     n = 1;
     do
     :: BIT(n) <= seen ->
        if
        :: HAS(seen, n) -> n++
        :: else ->
           truth[j] = truth[j] - (truth[j] > n);
           stored[j] = stored[j] - (stored[j] > n);
           k = 0;
           do
           :: k < F -> if :: content[k] == j && version[k] > n -> version[k] = version[k] - 1 :: else fi; k++
           :: else -> break
           od;
           seen = ((seen >> (n + 1)) << n) | (seen & (BIT(n) - 1))
        fi
     :: else -> break
     od;
     j++
  :: else -> break
  od
}

inline set_content(x, b, number) { content[x] = b; version[x] = number }

/* Section 4. Of a CPU that ran or is credited with a flush, for every debt. */
inline cover(cpus) {
  k = 0;
  do
  :: k < F -> if :: owed[k] -> covered[k] = covered[k] | (cpus) :: else fi; k++
  :: else -> break
  od
}

inline bump_gen() {
  k = 0;
  do
  :: k < C -> if :: behind[k] < 2 -> behind[k]++ :: else fi; k++
  :: else -> break
  od
}

inline drop(cpu, vpn) { tlb[(cpu) * V + vpn] = 0; tlb_frame[(cpu) * V + vpn] = 0 }

inline flush_tlb(cpu) {
  k = 0;
  do
  :: k < V -> drop(cpu, k); k++
  :: else -> break
  od;
  behind[cpu] = 0
}

/* Every CPU with the process is in its mask and not lazy, so that each gets the request, as a delivery or as the local function. */
inline flush_mm(first, last, all) {
  bump_gen();
  h = 0;
  do
  :: h < C && !HAS(LOADED, h) -> h++
  :: h < C && HAS(LOADED, h) ->
     if
     :: !(all) && last - first <= FLUSH_CEILING && behind[h] == 1 ->
        t = first;
        do
        :: t < last -> drop(h, t); t++
        :: else -> break
        od;
        behind[h] = 0
     :: else ->
        flush_tlb(h);
#if CREDIT_IS_FULL
        cover(BIT(h))
#endif
     fi;
     h++
  :: else -> break
  od
}

inline flush_batch(mask) {
  h = 0;
  do
  :: h < C ->
     if
     :: HAS(mask & LOADED, h) && behind[h] -> flush_tlb(h)
     :: else
     fi;
     h++
  :: else -> break
  od;
  cover(mask)
}

inline flush_now() {
  flush_batch(U);
#if ABSORB_IS_ON
  G = G & ~U; D = D & ~U;
#endif
  U = 0; need_flush = 0
}

/* Section 9. The open generation is paid. */
inline pay_generation() {
  flush_batch(G);
  G = 0;
  k = 0;
  do
  :: k < F -> if :: tag[k] == 2 -> tag[k] = 1 :: else fi; k++
  :: else -> break
  od
}

inline discharge_all() {
  G = G | D; D = 0;
  if
  :: G -> pay_generation()
  :: else
  fi
}

inline take_off(x) {
  if
  :: owed[x] ->
#if DEBT_MERGE_IS_OPEN_GENERATION
     G = G | D; D = 0;
     if
     :: tag[x] == 2 && G -> pay_generation()
     :: else
     fi
#else
     t = owed[x];
#if TARGETS_IS_UNCOVERED
     t = t & ~covered[x];
#endif
     if
     :: t -> flush_batch(t)
     :: else
     fi
#endif
  :: else
  fi;
  k = 0;
  do
  :: k < C * V -> if :: tlb[k] && tlb_frame[k] == x -> tlb[k] = tlb[k] | REUSED :: else fi; k++
  :: else -> break
  od;
  owed[x] = 0; covered[x] = 0; tag[x] = 0; refs[x] = 0
}

/* Section 5. f is a frame afterwards, if ok. */
inline alloc(cpu) {
  if
  :: num_pcp[cpu] == 0 ->
     n = 0;
     do
     :: n < PCP_BATCH && num_free -> pcp[(cpu) * F + num_pcp[cpu]] = free[0]; num_pcp[cpu]++; remove_at(free, 0, num_free, 0); n++
     :: else -> break
     od
  :: else
  fi;
  ok = num_pcp[cpu] > 0;
  if
  :: ok ->
     f = pcp[(cpu) * F];
     remove_at(pcp, (cpu) * F, num_pcp[cpu], 0);
     take_off(f)
  :: else
  fi
}

inline free_frame(x, cpu) {
  state[x] = FREE;
  if
  :: owed[x] -> tag[x] = 2
  :: else
  fi;
#if PENDING_TO_IS_TAIL
  if
  :: owed[x] -> pcp[(cpu) * F + num_pcp[cpu]] = x; num_pcp[cpu]++
  :: else -> push_head(pcp, (cpu) * F, num_pcp[cpu], x)
  fi;
#else
  push_head(pcp, (cpu) * F, num_pcp[cpu], x);
#endif
  if
  :: num_pcp[cpu] > PCP_HIGH ->
     n = 0;
     do
     :: n < PCP_BATCH && num_pcp[cpu] ->
        num_pcp[cpu]--;
        w = pcp[(cpu) * F + num_pcp[cpu]];
        pcp[(cpu) * F + num_pcp[cpu]] = 0;
        push_head(free, 0, num_free, w);
        n++
     :: else -> break
     od
  :: else
  fi
}

inline rmap_add(x, vpn) {
  k = 0;
  do
  :: rmap[(x) * R + k] -> k++
  :: else -> break
  od;
  rmap[(x) * R + k] = vpn + 1
}

inline rmap_remove(x, vpn) {
  k = 0;
  do
  :: rmap[(x) * R + k] != vpn + 1 -> k++
  :: else -> break
  od;
  rmap[(x) * R + k] = 0
}

inline fill(cpu, vpn) {
  tlb[(cpu) * V + vpn] = pte[vpn] & (PRESENT | WRITABLE | DIRTY);
  tlb_frame[(cpu) * V + vpn] = pte_frame[vpn]
}

inline store_into(x, b) {
  truth[b]++;
  if
  :: content[x] == b -> version[x] = truth[b]
  :: else -> set_content(x, CORRUPT, 0)
  fi
}

inline store(vpn) { store_into(pte_frame[vpn], backing[vpn]); harvested[backing[vpn]] = 0 }

/* The content is there: f becomes the home of b. */
inline make_home(x, b) {
  home[b] = x; page[x] = b; harvested[b] = 0; state[x] = USED;
  append(lru, num_lru, x)
}

inline take_back(x) {
  if
  :: state[x] == BATCHED ->
#if KEPT_DEBT_IS_FLUSHED
     if
     :: owed[x] -> t = owed[x]; flush_batch(t)
     :: else
     fi;
#endif
#if !KEPT_DEBT_IS_CARRIED
     owed[x] = 0; covered[x] = 0;
#endif
     state[x] = USED;
     append(lru, num_lru, x)
  :: else
  fi
}

/* Hooks of a fault. */
inline hook(vpn) {
  if
  :: HAS(WRITE_VMAS | MAYWRITE_VMAS, vma[vpn]) -> discharge_all()
  :: else
  fi
}

inline hook_before(vpn) {
#if WRITE_FAULT_FLUSH_IS_BEFORE
  hook(vpn)
#else
  skip
#endif
}

inline hook_after(vpn) {
#if WRITE_FAULT_FLUSH_IS_AFTER
  hook(vpn)
#else
  skip
#endif
}

/* A resident or read-in page. */
inline install(cpu, vpn, is_store) {
#if MARKER_FAULT_IS_FLUSH
  if
  :: is_store && (pte[vpn] & MARKER) -> flush_mm(0, 0, 1)
  :: else
  fi;
#endif
  hook_before(vpn);
  pte[vpn] = PRESENT | ACCESSED | (is_store * (WRITABLE | DIRTY));
  pte_frame[vpn] = home[backing[vpn]];
  rmap_add(pte_frame[vpn], vpn);
  hook_after(vpn);
  fill(cpu, vpn);
  if
  :: is_store -> store(vpn)
  :: else
  fi
}

inline fault(cpu, vpn, is_store) {
  if
  :: vma[vpn] == NONE || !HAS(READ_VMAS, vma[vpn]) || (is_store && !HAS(WRITE_VMAS, vma[vpn])) -> skip
  :: else ->
#if WRITE_FAULT_FLUSH_IS_WP
     if
     :: is_store && (pte[vpn] & PRESENT) -> discharge_all()
     :: else
     fi;
#endif
     if
     :: pte[vpn] & PRESENT ->
        hook_before(vpn);
        pte[vpn] = pte[vpn] | WRITABLE | DIRTY | ACCESSED;
        hook_after(vpn);
        fill(cpu, vpn);
        store(vpn)
     :: !(pte[vpn] & PRESENT) && home[backing[vpn]] != NONE ->
        f = home[backing[vpn]];
        take_back(f);
        install(cpu, vpn, is_store)
     :: else ->
        alloc(cpu);
        if
        :: ok ->
           set_content(f, backing[vpn], stored[backing[vpn]]);
           make_home(f, backing[vpn]);
           install(cpu, vpn, is_store)
        :: else
        fi
     fi
  fi;
  rank()
}

/* Section 8: an entry of the TLB is used; is_store is a constant. */
inline check(cpu, vpn, is_store) {
  e = tlb[(cpu) * V + vpn];
  f = tlb_frame[(cpu) * V + vpn];
  if
  :: !(pte[vpn] & PRESENT) || pte_frame[vpn] != f || (is_store && (pte[vpn] & (WRITABLE | DIRTY)) != (WRITABLE | DIRTY)) ->
     g = promised[vpn];
     exact = mapped[vpn] && content[f] == g && version[f] == truth[g];
     dropped = 0; /* every VMA here is SHARED: a page that a call takes away has none */
     t = 0;
     do
     :: t < C -> dropped = dropped || (open[t] && vs[t] <= vpn && vpn < ve[t] && vma[vpn] == NONE); t++
     :: else -> break
     od;
     named = mapped[vpn] && !(e & ADVANCED) && vma[vpn] != NONE && backing[vpn] == g;
     is_reuse = (e & REUSED) && !exact;
     is_mapping = (e & ADVANCED) && !dropped && !exact;
     is_permission = is_store && mapped[vpn] && !permitted[vpn];
     is_lost_store = is_store && (named || (exact && vma[vpn] != NONE && backing[vpn] == g)) && (home[g] != f || harvested[g]);
     is_old_value = !is_store && named && !exact && content[f] == g;
     report(is_reuse); report(is_mapping); report(is_permission); report(is_lost_store); report(is_old_value);
     if
     :: is_reuse || is_mapping || is_permission || is_lost_store || is_old_value -> report(1)
     :: else ->
        if
        :: !is_store -> skip
        :: is_store && mapped[vpn] -> store_into(f, g); rank()
        :: else -> set_content(f, CORRUPT, 0); rank()
        fi
     fi
  :: else ->
     if
     :: is_store -> store(vpn); rank()
     :: else
     fi
  fi
}

inline load(cpu, vpn) {
  !open[cpu] ->
  if
  :: tlb[cpu * V + vpn] -> check(cpu, vpn, 0)
  :: else ->
     if
     :: pte[vpn] & PRESENT -> pte[vpn] = pte[vpn] | ACCESSED; fill(cpu, vpn)
     :: else -> fault(cpu, vpn, 0)
     fi
  fi
}

inline store_event(cpu, vpn) {
  !open[cpu] ->
  if
  :: (tlb[cpu * V + vpn] & (WRITABLE | DIRTY)) == (WRITABLE | DIRTY) -> check(cpu, vpn, 1)
  :: else ->
     if
     :: (pte[vpn] & (PRESENT | WRITABLE)) == (PRESENT | WRITABLE) -> pte[vpn] = pte[vpn] | ACCESSED | DIRTY; fill(cpu, vpn); store(vpn); rank()
     :: else -> drop(cpu, vpn); fault(cpu, vpn, 1)
     fi
  fi
}

/* Section 6. */
inline drain(cpu) {
  G = G | D; D = 0;
  if
  :: need_flush -> flush_now()
  :: else
  fi;
  i = 0;
  do
  :: i < num_batch ->
     f = batch[i];
     if
     :: state[f] == BATCHED ->
        if
        :: home[page[f]] == f -> home[page[f]] = NONE
        :: else
        fi;
        free_frame(f, cpu)
     :: else
     fi;
     batch[i] = 0; deferred_entry[i] = 0;
     i++
  :: else -> break
  od;
  num_batch = 0
}

inline queue(vpn) {
  bump_gen();
  if
  :: deferred ->
     D = D | LOADED; owed[f] = owed[f] | LOADED; covered[f] = 0;
#if MUNMAP_DEBT_RULE_IS_PENDING
     pending = 1;
#elif MUNMAP_DEBT_RULE_IS_VMA_FLAG
     vma_flags = vma_flags | BIT(vma[vpn]);
#elif MUNMAP_DEBT_RULE_IS_PTE_MARKER
     pte[vpn] = MARKER;
#endif
     skip
  :: else ->
     U = U | LOADED; need_flush = 1;
#if BATCHED_PENDING_IS_ON
     pending = 1
#endif
  fi
}

inline reclaim(cpu, vpn) {
  vma[vpn] != NONE && home[backing[vpn]] != NONE && state[home[backing[vpn]]] == USED && refs[home[backing[vpn]]] == 0 ->
  g = backing[vpn];
  f = home[g];
  leave_lru(f);
  w = (content[f] == CORRUPT -> 0 : version[f]);
  any_writable = 0; any_dirty = 0; queued = 0;
  alone = !(LOADED & ~BIT(cpu));
  slot = 0;
  do
  :: slot < R ->
     if
     :: rmap[f * R + slot] ->
        v = rmap[f * R + slot] - 1;
        any_writable = any_writable || (pte[v] & WRITABLE);
        any_dirty = any_dirty || (pte[v] & DIRTY);
        queued = 1
     :: else
     fi;
     slot++
  :: else -> break
  od;
#if RECLAIM_FLUSH_IS_TAKE_OFF
#if DEFER_PAGES_IS_READ_ONLY
  deferred = queued && !alone && !any_writable;
#elif DEFER_PAGES_IS_CLEAN
  deferred = queued && !alone && !any_dirty && w == stored[g];
#else
  deferred = queued && !alone;
#endif
#else
  deferred = 0;
#endif
  slot = 0;
  do
  :: slot < R ->
     if
     :: rmap[f * R + slot] -> v = rmap[f * R + slot] - 1; pte[v] = 0; pte_frame[v] = 0
     :: else
     fi;
     slot++
  :: else -> break
  od;
  slot = 0;
  do
  :: slot < R ->
     if
     :: rmap[f * R + slot] ->
        v = rmap[f * R + slot] - 1;
        rmap[f * R + slot] = 0;
#if RECLAIM_FLUSH_IS_PAGE
        flush_mm(v, v + 1, 0)
#elif !RECLAIM_FLUSH_IS_NEVER
        if
        :: alone -> flush_mm(v, v + 1, 0)
        :: else -> queue(v)
        fi
#endif
     :: else
     fi;
     slot++
  :: else -> break
  od;
  if
  :: any_dirty || w != stored[g] ->
#if FLUSH_DIRTY_IS_ON
     if
     :: any_dirty && need_flush -> flush_now()
     :: else
     fi;
#endif
     stored[g] = w; harvested[g] = 1;
     rank()
  :: else
  fi;
  state[f] = BATCHED;
#if RECLAIM_REMOVE_IS_BEFORE_FLUSH
  home[g] = NONE;
#endif
  deferred_entry[num_batch] = deferred;
  append(batch, num_batch, f);
  if
  :: num_batch >= BATCH_SIZE -> drain(cpu)
  :: else
  fi
}

inline reclaim_flush(cpu) { true -> drain(cpu) }

/* Section 7. */
inline alloc_foreign(cpu) {
  true ->
  alloc(cpu);
  if
  :: ok -> state[f] = FOREIGN; set_content(f, FOREIGN_CONTENT, 0); append(foreign, num_foreign, f); rank()
  :: else
  fi
}

inline file_write(cpu, b) {
  true ->
  if
  :: home[b] == NONE ->
     alloc(cpu);
     if
     :: ok -> set_content(f, b, stored[b]); make_home(f, b)
     :: else
     fi
  :: else -> ok = 1; f = home[b]; take_back(f)
  fi;
  if
  :: ok ->
#if FILE_WRITE_FLUSH_IS_ON
     discharge_all();
#endif
     truth[b]++; set_content(f, b, truth[b]); harvested[b] = 0;
     rank()
  :: else
  fi
}

inline widen(cpu, vpn) {
  if
  :: cleared[cpu] -> cs[cpu] = (vpn < cs[cpu] -> vpn : cs[cpu]); ce[cpu] = (vpn + 1 > ce[cpu] -> vpn + 1 : ce[cpu])
  :: else -> cleared[cpu] = 1; cs[cpu] = vpn; ce[cpu] = vpn + 1
  fi
}

inline debt_rule(cpu, vpn) {
  if
  :: pending ->
     flush_mm(0, 0, 1); pending = 0;
#if CREDIT_IS_BATCH_AND_MM
     cover(LOADED)
#endif
  :: else
  fi;
#if MUNMAP_DEBT_RULE_IS_VMA_FLAG
  if
  :: HAS(vma_flags, vma[vpn]) -> flush_mm(0, 0, 1); vma_flags = vma_flags & ~BIT(vma[vpn])
  :: else
  fi;
#elif MUNMAP_DEBT_RULE_IS_PTE_MARKER
  if
  :: pte[vpn] & MARKER -> widen(cpu, vpn); pte[vpn] = 0
  :: else
  fi;
#endif
  skip
}

/* ok: the PTE was cleared; f its frame, which a reference keeps. */
inline zap(cpu, vpn) {
  ok = pte[vpn] & PRESENT;
  if
  :: ok ->
     f = pte_frame[vpn];
     pte[vpn] = 0; pte_frame[vpn] = 0;
     rmap_remove(f, vpn);
     widen(cpu, vpn);
     refs[f]++;
     held[cpu * V + num_held[cpu]] = f; num_held[cpu]++;
#if GATHER_FLUSH_IS_PAGE
     flush_mm(vpn, vpn + 1, 0)
#endif
  :: else
  fi
}

inline finish_flush(cpu) {
#if MUNMAP_DEBT_RULE_IS_ALWAYS
#if !GATHER_FLUSH_IS_NONE
  flush_mm(0, 0, 1);
#endif
#elif GATHER_FLUSH_IS_NOW
  if
  :: cleared[cpu] -> flush_mm(cs[cpu], ce[cpu], 0)
  :: else
  fi;
#endif
  do
  :: num_held[cpu] -> num_held[cpu]--; refs[held[cpu * V + num_held[cpu]]]--; held[cpu * V + num_held[cpu]] = 0
  :: else -> break
  od;
  cleared[cpu] = 0; cs[cpu] = 0; ce[cpu] = 0
}

inline advance(vpn) {
  k = 0;
  do
  :: k < C -> if :: tlb[k * V + vpn] -> tlb[k * V + vpn] = tlb[k * V + vpn] | ADVANCED :: else fi; k++
  :: else -> break
  od
}

inline munmap(cpu, vpn) {
  UNLOCKED(cpu) ->
  if
  :: open[cpu] -> vs[cpu] = (vpn < vs[cpu] -> vpn : vs[cpu]); ve[cpu] = (vpn + 1 > ve[cpu] -> vpn + 1 : ve[cpu])
  :: else -> open[cpu] = 1; vs[cpu] = vpn; ve[cpu] = vpn + 1
  fi;
  if
  :: vma[vpn] != NONE ->
     debt_rule(cpu, vpn);
     zap(cpu, vpn);
     vma[vpn] = NONE
  :: else
  fi
}

inline gather_finish(cpu) {
  open[cpu] ->
  finish_flush(cpu);
  t = vs[cpu];
  do
  :: t < ve[cpu] ->
     mapped[t] = vma[t] != NONE;
     permitted[t] = vma[t] != NONE && HAS(WRITE_VMAS, vma[t]);
     promised[t] = backing[t];
     advance(t);
     t++
  :: else -> break
  od;
  open[cpu] = 0; vs[cpu] = 0; ve[cpu] = 0
}

inline mmap(cpu, vpn, b, a, is_first) {
  !open[cpu] && UNLOCKED(cpu) ->
#if MMAP_FLUSH_IS_ON
  if
  :: is_first && HAS(WRITE_VMAS, a) -> discharge_all()
  :: else
  fi;
#endif
  if
  :: vma[vpn] != NONE ->
     debt_rule(cpu, vpn);
     zap(cpu, vpn);
     finish_flush(cpu)
  :: else ->
#if MUNMAP_DEBT_RULE_IS_PTE_MARKER
     if
     :: pte[vpn] & MARKER -> flush_mm(vpn, vpn + 1, 0); pte[vpn] = 0
     :: else
     fi;
#endif
     skip
  fi;
  if
  :: is_first -> vma_flags = vma_flags & ~BIT(a)
  :: else
  fi;
  vma[vpn] = a; backing[vpn] = b;
  mapped[vpn] = 1; permitted[vpn] = HAS(WRITE_VMAS, a); promised[vpn] = b;
  advance(vpn)
}

init {
  do
#include "events.h"
  od
}
