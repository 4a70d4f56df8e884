/* The machine of docs/MODEL.md as one plain C11 program: the honest competitor of the batched engine, and a third reading of the model.
 *
 *   reference INPUT OUTPUT [--threads N] [--snapshots]
 *
 * Build: cc -std=c11 -O3 -march=native -fopenmp. One lane is one machine; lanes run in parallel, one thread a lane.
 * Replacement is lru; up to 64 CPUs (sets of CPUs are 64-bit words). Section numbers below are those of docs/MODEL.md.
 *
 * INPUT, little-endian int32 throughout, no padding:
 *   magic 0x4652554C, format 1
 *   num_cpus num_processes num_vpns num_frames num_vmas num_file_pages num_anon
 *   l1: sets ways index(0 linear, 1 xor) replacement(0 lru); l2: the same four
 *   rmap_slots gather_slots batch_slots pcp_slots quarantine_slots
 *   num_lanes num_traces num_events num_samples
 *   lanes[num_lanes][46]: the 10 numbers of MachineParams, then the 36 of FlushPolicy, in the order of `struct lane`
 *   trace_index[num_lanes], sample_points[num_samples] (event counts, ascending, the last is num_events)
 *   per trace: vmas[num_vmas], page_vma[P][V], page_backing[P][V], loaded[num_cpus], events[num_events][5]
 *
 * OUTPUT, little-endian: int32 magic, num_lanes, num_samples, num_cpus, num_names, threads, bytes of the names, 0; double seconds; the
 *   names of the scalar counters separated by spaces; then int64
 *   samples[num_lanes][num_samples][num_names + 3*16 + num_cpus + 6*2] (scalars, histograms ipis_per_alloc age_at_use age_at_discharge,
 *   received, violations as pairs of loads and stores), then per lane 6*4 (first violations: now cpu process vpn), fault word, fault event.
 * With --snapshots (one lane): one JSON object a line after every event: {"snapshot": .., "counters": .., "violations": ..}.
 */
#include <omp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t cpuset;
enum { MAGIC = 0x4652554C, FORMAT = 1, MAX_CPUS = 64, NONE = -1, NUM_BUCKETS = 16, NUM_CLASSES = 6, LRU = 0 };
enum { NOP, LOAD, STORE, MMAP, MUNMAP, MPROTECT, DONTNEED, GATHER_FINISH, FILE_WRITE, RECLAIM, RECLAIM_FLUSH, ALLOC_FOREIGN, FREE_FOREIGN,
       SWITCH, TICK, ALLOC_ATOMIC, FAULT_INSTALL, FAULT_FINISH, TAKE_OFF, DISCHARGE, REMOTE_WRITE, TRUNCATE, MADVISE_FREE,
       EXIT, MREMAP, FORK, MIGRATE, NUM_OPS };
enum { VMA_READ = 1, VMA_WRITE = 2, VMA_MAYWRITE = 4, VMA_SHARED = 8, VMA_ANON = 16 };
enum { FIRST_PAGE = 65536 };
enum payer { PAY_RECLAIM, PAY_MAPPING, PAY_FAULT, PAY_ALLOC };
enum { REUSE, MAPPING, PERMISSION, LOST_STORE, OLD_VALUE, ATOMIC_FLUSH };
enum frame_state { FREE, USED, BATCH, HELD, FOREIGN, QUARANTINE, TAKEN };
enum { NOTHING = -1, FOREIGN_CONTENT = -2, CORRUPT = -3 };
enum { RMAP_FULL = 1, GATHER_FULL = 2, ANON_POOL_EMPTY = 4 };
enum { RECLAIM_NEVER, RECLAIM_PAGE, RECLAIM_BATCH, RECLAIM_TAKE_OFF, RECLAIM_OWNER };
enum { DEFER_READ_ONLY, DEFER_CLEAN, DEFER_ANY };
enum { OPEN_GENERATION, PER_FRAME };
enum { CREDIT_FULL, CREDIT_BATCH, CREDIT_BATCH_AND_MM };
enum { INIT_OFF, INIT_UNPAID, INIT_PAID, INIT_REFUSED };
enum { MIGRATE_OFF, MIGRATE_NOW, MIGRATE_DEFER };
enum { KEPT_CARRIED, KEPT_LOST, KEPT_FLUSHED };
enum { FAULT_OFF, FAULT_WP, FAULT_BEFORE, FAULT_AFTER };
enum { GATHER_NONE, GATHER_NOW, GATHER_PAGE, GATHER_OWNER, GATHER_TICKS };
enum { DEBT_NONE, DEBT_VMA_FLAG, DEBT_PTE_MARKER, DEBT_PENDING, DEBT_ALWAYS, DEBT_GATHER_HOOK };

#define SCALARS(X) \
    X(accesses) X(loads) X(stores) X(pgfault) X(pgmajfault) X(segv) X(sigbus) X(spurious_fault) X(stlb_hit) \
    X(dtlb_load_misses) X(dtlb_store_misses) X(walk_completed) X(pgrescued) X(pglazyfree) X(pglazyfreed) X(pgmigrate_success) X(pgmigrate_fail) X(pgpromote_success) X(pgdemote_kswapd) X(pgdemote_direct) X(alloc_fail) X(allocstall) X(pgscan) X(pgrotated) X(pgsteal_kswapd) \
    X(pgsteal_direct) X(pgpgout) X(nr_tlb_remote_flush) X(nr_tlb_remote_flush_received) X(nr_tlb_local_flush_all) \
    X(nr_tlb_local_flush_one) X(needless) X(ipi_reclaim) X(ipi_mapping) X(ipi_fault) X(ipi_alloc) X(deferred_unmaps) X(absorbed) \
    X(recycled) X(discharges) X(discharged_by_foreign) X(give_ups) X(sweeps) X(switches) X(switch_flushes) X(nr_gathers) X(atomic_refused) \
    X(tolerated) X(tolerated_epoch) X(events) X(events_disabled) X(nr_pending)
#define AS_ENUM(name) C_##name,
#define AS_NAME(name) #name,
enum { SCALARS(AS_ENUM) NUM_SCALARS };
static const char *const scalar_names[] = { SCALARS(AS_NAME) };
enum { IPIS_PER_ALLOC, AGE_AT_USE, AGE_AT_DISCHARGE, NUM_HISTOGRAMS };
static const char *const histogram_names[] = { "ipis_per_alloc", "age_at_use", "age_at_discharge" };

struct level_shape { int32_t sets, ways, index, replacement; };
struct shape {
    int32_t num_cpus, num_processes, num_vpns, num_frames, num_vmas, num_file_pages, num_anon;
    struct level_shape l1, l2;
    int32_t rmap_slots, gather_slots, batch_slots, pcp_slots, quarantine_slots;
    int32_t num_lanes, num_traces, num_events, num_samples;
};
struct lane {
    int32_t frames_in_use, wmark_min, wmark_low, wmark_high, pcp_batch, pcp_high, reclaim_batch, kswapd_cpu, load_mode, fast_frames;
    int32_t reclaim_flush, defer_pages, debt_merge, absorb, targets, credit, migrate_flush, kept_debt, debt_scope, pending_to, buddy_tag, buddy_merge, refill_tag, atomic_alloc, init_on_free, gather_flush, batched_pending, munmap_debt_rule;
    int32_t marker_fault, va_rule, write_fault_flush, mmap_flush, file_write_flush, invalidate_flush, cow_flush, flush_dirty, switch_flush, lazy_skip;
    int32_t mask_on_switch, reclaim_remove, transport, trim_period, flush_ceiling, latr_ticks, quarantine_slots, gen_bits;
};
_Static_assert(sizeof(struct lane) == 46 * sizeof(int32_t), "a lane record is 46 integers");
struct trace { const int32_t *vmas, *page_vma, *page_backing, *loaded, *events; };

/* What is owed for a frame when it leaves the allocator. */
struct debt { cpuset owed; int32_t tag, owner, since, tag_clock; };

struct way { int32_t frame, filled, used; uint8_t writable, dirty; };
struct gather { int32_t kind, vs, ve, cleared, cs, ce, num_held; int32_t *held; };
struct cpu {
    int32_t loaded, lazy, ticks, covered;
    int32_t fault_vpn, fault_pays; /* a fault whose PTE is installed and that has not returned; vpn or NONE */
    int32_t taken;                 /* a frame that is not handed out yet, or NONE, and its debt */
    struct debt taken_debt;
    uint32_t *tag;   /* L1 then L2, set by set: process * V + vpn, or EMPTY */
    struct way *way; /* the same order */
    struct gather gather;
    int32_t *pcp;
    uint32_t pcp_head, pcp_count;
};
struct process { cpuset cpumask, sweep, owed; int32_t tlb_gen, pending, flushed, gathers, excl, va_debt, next_trim, clock; };
struct page {
    int32_t frame, backing, promise_backing, epoch, changed;
    int16_t vma;
    uint8_t present, writable, accessed, dirty, marker, promise_mapped, promise_writable;
};
struct frame {
    cpuset owed;
    int32_t prev, next; /* neighbours on lru; rows F and F + 1 are the ends of the lists, fast and slow */
    int32_t content, version, handed, refs, tag, owner, since, tag_clock, homed;
    int32_t state;
    bool on_free;       /* on the global list */
};
struct backing { int32_t truth, stored, home, parent, origin, shared, sharers; uint8_t on_store, harvested; };
struct file_page { cpuset owed; int32_t clock; };
struct quarantined { int32_t frame, kind, stamp, process; };
struct sample { int64_t scalar[NUM_SCALARS], histogram[NUM_HISTOGRAMS][NUM_BUCKETS], received[MAX_CPUS], violations[NUM_CLASSES][2]; };

struct machine {
    const struct shape *shape;
    const struct lane *lane;
    int32_t now, num_vpns, num_file_pages, rmap_slots;
    uint32_t num_l1, num_tags;     /* TLB entries of a CPU: in L1, in both levels */
    const uint16_t *set1, *set2;   /* vpn -> first entry of its set */
    struct cpu *cpu;
    struct process *process;
    int32_t *gen_done;             /* [c][m] */
    struct page *page;             /* [m][v] */
    const int32_t *vma;
    int32_t *vma_flag;
    struct frame *frame;           /* [F + 2] */
    int32_t *rmap;                 /* [F][R] */
    struct backing *backing;
    struct file_page *file_page;   /* [NF] */
    int32_t *free, num_free;       /* a stack: its top is the head of the deque */
    int32_t *slow, num_slow;       /* the same, of slow frames */
    int32_t *batch_frame, num_batch;
    uint8_t *batch_deferred;
    cpuset batch_mask, deferred_mask, debt_mask; /* U, D, G */
    bool need_flush, kswapd_on;
    int32_t *foreign, num_foreign;
    struct quarantined *quarantine;
    int32_t quarantine_head, num_quarantine;
    int32_t *anon_pool, num_pool;
    int32_t ugen, ugen_done, unmap_clock;
    int32_t task_tag; /* r of section 5 */
    int32_t fault;
    uint32_t pcp_wrap;
    struct sample count;
    int64_t first[NUM_CLASSES][4];
    void *arena;
};
#define COUNT(name) (M->count.scalar[C_##name])
static const uint32_t EMPTY = UINT32_MAX;

static _Noreturn void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("reference: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(2);
}

static inline cpuset bit(int c) { return (cpuset)1 << c; }
static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
#define FOR_EACH_CPU(c, set) for (cpuset rest_ = (set); rest_ && ((c) = __builtin_ctzll(rest_), 1); rest_ &= rest_ - 1)

static inline void tally(struct machine *M, int histogram, int64_t value, int64_t n) {
    int bucket = value <= 0 ? 0 : 64 - __builtin_clzll((uint64_t)value);
    M->count.histogram[histogram][bucket < NUM_BUCKETS ? bucket : NUM_BUCKETS - 1] += n;
}

/* Count n violations of a class, and note the first. */
static void violate(struct machine *M, int class, int is_store, int n, int c, int m, int v) {
    M->count.violations[class][is_store] += n;
    if (M->first[class][0] != 0) return;
    M->first[class][0] = M->now;
    M->first[class][1] = c;
    M->first[class][2] = m;
    M->first[class][3] = v;
}

/* ---- 3. TLB ---- */

static inline int find_way(const uint32_t *tag, int ways, uint32_t key) {
    for (int w = 0; w < ways; w++)
        if (tag[w] == key) return w;
    return NONE;
}

static void fill_level(struct cpu *cpu, uint32_t set, int ways, uint32_t key, struct way entry, int32_t now) {
    uint32_t *tag = cpu->tag + set;
    struct way *way = cpu->way + set;
    int victim = find_way(tag, ways, key);
    if (victim == NONE) victim = find_way(tag, ways, EMPTY);
    if (victim == NONE) {
        victim = 0;
        for (int w = 1; w < ways; w++)
            if (way[w].used < way[victim].used) victim = w;
    }
    entry.used = now;
    tag[victim] = key;
    way[victim] = entry;
}

/* Fill both levels of CPU c from the PTE of page (m, v). */
static void fill_both(struct machine *M, int c, int v, uint32_t key, const struct page *page) {
    struct way entry = { page->frame, M->now, M->now, page->writable, page->dirty };
    fill_level(&M->cpu[c], M->set2[v], M->shape->l2.ways, key, entry, M->now);
    fill_level(&M->cpu[c], M->set1[v], M->shape->l1.ways, key, entry, M->now);
}

static void drop_entry(struct machine *M, int c, int v, uint32_t key) {
    uint32_t *tag = M->cpu[c].tag;
    int w = find_way(tag + M->set1[v], M->shape->l1.ways, key);
    if (w != NONE) tag[M->set1[v] + w] = EMPTY;
    w = find_way(tag + M->set2[v], M->shape->l2.ways, key);
    if (w != NONE) tag[M->set2[v] + w] = EMPTY;
}

static void flush_process(struct machine *M, int c, int m) {
    uint32_t *tag = M->cpu[c].tag, first = (uint32_t)(m * M->num_vpns), num = (uint32_t)M->num_vpns, num_tags = M->num_tags;
    for (uint32_t e = 0; e < num_tags; e++) tag[e] = tag[e] - first < num ? EMPTY : tag[e];
}

/* ---- 4. Flush requests ---- */

struct range { int32_t start, end; bool all; };
static const struct range ALL = { 0, 0, true };
static inline struct range one_page(int v) { return (struct range){ v, v + 1, false }; }

static inline int32_t *gen_done_of(struct machine *M, int c, int m) { return &M->gen_done[c * M->shape->num_processes + m]; }

/* Steps 4 and 5 on CPU c; returns whether the flush was a full one. */
static bool run_flush(struct machine *M, int c, int m, struct range range) {
    int32_t gen = M->process[m].tlb_gen, *done = gen_done_of(M, c, m);
    bool full = range.all || gen != *done + 1;
    if (full) {
        flush_process(M, c, m);
        if (M->lane->credit == CREDIT_FULL) M->cpu[c].covered = M->unmap_clock;
    } else {
        for (int v = range.start; v < range.end; v++) drop_entry(M, c, v, (uint32_t)(m * M->num_vpns + v));
    }
    *done = gen;
    return full;
}

static void count_delivery(struct machine *M, int c, enum payer payer) {
    COUNT(nr_tlb_remote_flush_received)++;
    M->count.received[c]++;
    M->count.scalar[C_ipi_reclaim + payer]++;
}

/* Steps 2 and 3 of a delivery: true if c has nothing to flush. */
static bool is_spared(struct machine *M, int c, int m) {
    struct cpu *cpu = &M->cpu[c];
    if (cpu->lazy) {
        M->process[m].cpumask &= ~bit(c);
        cpu->loaded = NONE;
        return true;
    }
    if (*gen_done_of(M, c, m) == M->process[m].tlb_gen) {
        COUNT(needless)++;
        return true;
    }
    return false;
}

static void flush_here(struct machine *M, int i, int m, struct range range) {
    if (*gen_done_of(M, i, m) == M->process[m].tlb_gen) return;
    if (run_flush(M, i, m, range)) COUNT(nr_tlb_local_flush_all)++;
    else COUNT(nr_tlb_local_flush_one) += range.end - range.start;
}

static struct range limit(const struct machine *M, struct range range) {
    return range.end - range.start > M->lane->flush_ceiling ? ALL : range;
}

/* `is_pending`: because of unmaps that reclaim has batched. */
static void request_mm(struct machine *M, int i, int m, struct range range, bool freed_tables, enum payer payer, bool is_pending) {
    const struct lane *lane = M->lane;
    struct process *mm = &M->process[m];
    cpuset mask = mm->cpumask;
    range = limit(M, range);
    mm->tlb_gen++;
    if (range.all) mm->va_debt = 0;
    cpuset targets = mm->cpumask & ~bit(i);
    if (targets) {
        bool trim = false;
        COUNT(nr_tlb_remote_flush)++;
        if (lane->mask_on_switch && M->now >= mm->next_trim) {
            trim = true;
            mm->next_trim = M->now + lane->trim_period;
        }
        int c;
        FOR_EACH_CPU(c, targets) {
            const struct cpu *cpu = &M->cpu[c];
            bool awake = !(cpu->lazy && lane->lazy_skip) && (!lane->mask_on_switch || cpu->loaded == m || trim);
            if (!awake && !freed_tables) continue;
            count_delivery(M, c, payer);
            if (cpu->loaded != m) {
                if (lane->mask_on_switch) mm->cpumask &= ~bit(c);
            } else if (!is_spared(M, c, m)) {
                run_flush(M, c, m, range);
            }
        }
    }
    if (M->cpu[i].loaded == m && (mm->cpumask & bit(i))) flush_here(M, i, m, range);
    if (is_pending && lane->credit == CREDIT_BATCH_AND_MM) {
        int c;
        FOR_EACH_CPU(c, mask) M->cpu[c].covered = M->unmap_clock;
    }
    M->unmap_clock++;
}

static void flush_mm(struct machine *M, int i, int m, struct range range, bool freed_tables, enum payer payer) {
    request_mm(M, i, m, range, freed_tables, payer, false);
}

static void flush_batch(struct machine *M, int i, cpuset mask, enum payer payer) {
    cpuset targets = mask & ~bit(i);
    int c;
    if (targets) COUNT(nr_tlb_remote_flush)++;
    FOR_EACH_CPU(c, targets) {
        if (M->cpu[c].lazy && M->lane->lazy_skip) continue;
        count_delivery(M, c, payer);
        int m = M->cpu[c].loaded;
        if (m != NONE && !is_spared(M, c, m)) run_flush(M, c, m, ALL);
    }
    if ((mask & bit(i)) && M->cpu[i].loaded != NONE) flush_here(M, i, M->cpu[i].loaded, ALL);
    FOR_EACH_CPU(c, mask) M->cpu[c].covered = M->unmap_clock;
    M->unmap_clock++;
}

/* ---- 9. Debts ---- */

/* Generations are numbers of gen_bits bits; 0 is none. */
static int32_t next_generation(const struct machine *M, int32_t g) { return g + 1 == 1 << M->lane->gen_bits ? 1 : g + 1; }

/* The newer of two tags in a signed comparison of gen_bits bits. */
static int32_t latest(const struct machine *M, int32_t a, int32_t b) {
    if (!a || !b) return a ? a : b;
    return (a - b) >> (M->lane->gen_bits - 1) & 1 ? b : a;
}

/* Flush G and close its generation. */
static void flush_debts(struct machine *M, int c, enum payer payer) {
    flush_batch(M, c, M->debt_mask, payer);
    M->debt_mask = 0;
    M->ugen_done = M->ugen;
    M->ugen = next_generation(M, M->ugen);
    COUNT(discharges)++;
}

static void discharge_all(struct machine *M, int c, enum payer payer) {
    M->debt_mask |= M->deferred_mask;
    M->deferred_mask = 0;
    if (M->debt_mask) flush_debts(M, c, payer);
}

/* CPUs of a set that no flush since `clock` has reached. */
static cpuset uncovered(const struct machine *M, cpuset owed, int32_t clock) {
    cpuset left = owed;
    int k;
    FOR_EACH_CPU(k, owed) if (M->cpu[k].covered >= clock) left &= ~bit(k);
    return left;
}

/* The file page that a page maps shared, or NONE. */
static int shared_file(const struct machine *M, const struct page *page) {
    bool is_shared = page->vma != NONE && (M->vma[page->vma] & VMA_SHARED) && page->backing < M->num_file_pages;
    return is_shared ? page->backing : NONE;
}

/* A forced flush: of every debt, or of those of process m and file page b, either of which may be NONE. */
static void forced_flush(struct machine *M, int c, int m, int b, enum payer payer) {
    cpuset targets = 0;
    if (!M->lane->debt_scope) {
        discharge_all(M, c, payer);
        return;
    }
    if (m != NONE) targets |= uncovered(M, M->process[m].owed, M->process[m].clock);
    if (b != NONE) targets |= uncovered(M, M->file_page[b].owed, M->file_page[b].clock);
    if (!targets) return;
    flush_batch(M, c, targets, payer);
    COUNT(discharges)++;
}

/* Does a take-off pay for its own frame only, and not for the open generation? */
static bool is_paid_alone(const struct lane *lane) { return lane->reclaim_flush == RECLAIM_OWNER || lane->debt_merge == PER_FRAME; }

/* What the task that allocates knows to owe for a frame. */
static struct debt debt_of(const struct machine *M, const struct frame *frame) {
    return (struct debt){ frame->owed, latest(M, M->task_tag, frame->tag), frame->owner, frame->since, frame->tag_clock };
}

/* CPUs that the take-off of a frame with this debt by a stranger has to flush. */
static cpuset unpaid(const struct machine *M, const struct debt *debt) {
    if (!is_paid_alone(M->lane)) return debt->tag == M->ugen ? M->debt_mask | M->deferred_mask : 0;
    return M->lane->targets ? uncovered(M, debt->owed, debt->tag_clock) : debt->owed;
}

/* Discharge the debt of a frame that leaves the allocator; `new_owner` is a process, or NONE if nobody maps it. */
static void discharge(struct machine *M, int c, const struct debt *debt, int new_owner, bool is_foreign) {
    const struct lane *lane = M->lane;
    int64_t sent = COUNT(nr_tlb_remote_flush_received);
    bool discharged = false;
    if (is_paid_alone(lane) ? !debt->owed : !debt->tag) {
        tally(M, IPIS_PER_ALLOC, 0, 1);
        return;
    }
    if (lane->reclaim_flush == RECLAIM_OWNER && debt->owner == new_owner) {
        COUNT(recycled)++;
    } else {
        cpuset targets = unpaid(M, debt);
        discharged = targets != 0;
        if (!is_paid_alone(lane)) {
            M->debt_mask |= M->deferred_mask;
            M->deferred_mask = 0;
            if (discharged) flush_debts(M, c, PAY_ALLOC);
        } else if (discharged) {
            flush_batch(M, c, targets, PAY_ALLOC);
            COUNT(discharges)++;
        }
        if (!discharged) COUNT(absorbed)++;
    }
    if (discharged) {
        if (is_foreign) COUNT(discharged_by_foreign)++;
        if (debt->owed) tally(M, AGE_AT_DISCHARGE, M->now - debt->since, 1);
    }
    tally(M, IPIS_PER_ALLOC, COUNT(nr_tlb_remote_flush_received) - sent, 1);
}

/* ---- Lists, homes, identities ---- */

static inline bool is_slow(const struct machine *M, int f) { return f >= M->lane->fast_frames; }

static inline void lru_remove(struct machine *M, int f) {
    struct frame *frame = &M->frame[f];
    M->frame[frame->prev].next = frame->next;
    M->frame[frame->next].prev = frame->prev;
}

static inline void lru_append(struct machine *M, int f) {
    int row = M->shape->num_frames + is_slow(M, f);
    struct frame *end = &M->frame[row], *frame = &M->frame[f];
    frame->prev = end->prev;
    frame->next = row;
    M->frame[end->prev].next = f;
    end->prev = f;
}

/* The oldest frame of the list that reclaim looks at, or NONE. */
static inline int lru_oldest(const struct machine *M) {
    int fast = M->frame[M->shape->num_frames].next, slow = M->frame[M->shape->num_frames + 1].next;
    if (M->num_slow == 0 && slow < M->shape->num_frames) return slow;
    return fast < M->shape->num_frames ? fast : NONE;
}

static inline void set_home(struct machine *M, int b, int f) {
    M->backing[b].home = f;
    M->frame[f].homed = b;
}

static inline void clear_home(struct machine *M, int b) {
    if (M->backing[b].home != NONE) M->frame[M->backing[b].home].homed = NONE;
    M->backing[b].home = NONE;
}

static inline bool is_anon(const struct machine *M, int b) { return b >= M->num_file_pages; }

/* Is b a page beyond the end of its file? */
static inline bool is_gone(const struct machine *M, int b) { return !is_anon(M, b) && !M->backing[b].on_store; }

/* May the content of b be dropped instead of written out? */
static inline bool is_lazyfree(const struct machine *M, int b) {
    return is_anon(M, b) && M->backing[b].harvested && !M->backing[b].on_store;
}

static inline void make_lazyfree(struct machine *M, int b) {
    M->backing[b].harvested = 1;
    M->backing[b].on_store = 0;
}

/* A frame starts to hold backing b, version w. */
static void move_in(struct machine *M, int f, int b, int w) {
    struct frame *frame = &M->frame[f];
    set_home(M, b, f);
    M->backing[b].harvested = 0;
    frame->content = b;
    frame->version = w;
    frame->state = USED;
    lru_append(M, f);
}

static int fresh_id(struct machine *M, int parent) {
    if (M->num_pool == 0) {
        M->fault |= ANON_POOL_EMPTY;
        return NONE;
    }
    int b = M->anon_pool[--M->num_pool];
    struct backing *backing = &M->backing[b];
    backing->truth++;
    backing->stored = backing->truth;
    backing->on_store = 0;
    backing->harvested = 0;
    backing->parent = parent;
    backing->origin = parent != NONE && is_anon(M, parent) ? M->backing[parent].origin : parent;
    clear_home(M, b);
    return b;
}

static void release_id(struct machine *M, int b) {
    if (M->backing[b].shared > 0) {
        M->backing[b].shared--;
        return;
    }
    M->anon_pool[M->num_pool++] = b;
    clear_home(M, b);
}

static bool has_sharers(const struct machine *M, int b) { return is_anon(M, b) && M->backing[b].sharers > 0; }

/* Does a store to the page have to copy it, because others have its anonymous content too? */
static bool is_copy_on_write(const struct machine *M, const struct page *page) {
    return page->vma != NONE && !(M->vma[page->vma] & VMA_SHARED) && has_sharers(M, page->backing);
}

static void rmap_add(struct machine *M, int f, int32_t key) {
    int32_t *slot = M->rmap + (size_t)f * M->rmap_slots;
    for (int r = 0; r < M->rmap_slots; r++) {
        if (slot[r] == NONE) {
            slot[r] = key;
            return;
        }
    }
    M->fault |= RMAP_FULL;
}

/* Clear a present PTE (which has no marker) and free its rmap slot. */
static void clear_pte(struct machine *M, struct page *page) {
    int32_t *slot = M->rmap + (size_t)page->frame * M->rmap_slots, key = (int32_t)(page - M->page);
    for (int r = 0; r < M->rmap_slots; r++)
        if (slot[r] == key) slot[r] = NONE;
    page->present = page->writable = page->accessed = page->dirty = 0;
    page->frame = NONE;
    page->changed = M->now;
}

/* ---- 5, 6. Frames: free, reclaim, alloc ---- */

static inline bool has_free_buddy(const struct machine *M, int f) {
    return M->lane->buddy_merge && (f ^ 1) < M->lane->frames_in_use && M->frame[f ^ 1].on_free;
}

/* A frame goes from a per-CPU list to the global list, where it may merge with its buddy. */
static void push_free(struct machine *M, int f) {
    struct frame *frame = &M->frame[f];
    if (M->lane->buddy_tag) frame->tag = 0;
    if (has_free_buddy(M, f)) frame->tag = M->frame[f ^ 1].tag = latest(M, frame->tag, M->frame[f ^ 1].tag);
    frame->on_free = true;
    M->free[M->num_free++] = f;
}

static int pop_free(struct machine *M) {
    int f = M->free[--M->num_free];
    struct frame *frame = &M->frame[f];
    frame->on_free = false;
    if (M->lane->refill_tag) {
        M->task_tag = latest(M, M->task_tag, frame->tag);
        frame->tag = 0;
        if (has_free_buddy(M, f)) M->frame[f ^ 1].tag = 0;
    }
    return f;
}

static void put_slow(struct machine *M, int f, bool at_tail) {
    int at = at_tail ? 0 : M->num_slow;
    for (int k = M->num_slow++; k > at; k--) M->slow[k] = M->slow[k - 1];
    M->slow[at] = f;
}

static void free_frame(struct machine *M, int f, int c) {
    struct cpu *cpu = &M->cpu[c];
    struct frame *frame = &M->frame[f];
    frame->state = FREE;
    if (M->lane->init_on_free) {
        frame->content = NOTHING;
        frame->version = 0;
        frame->handed = M->now;
    }
    if (frame->owed) {
        frame->tag = M->ugen;
        COUNT(nr_pending)++;
    }
    if (is_slow(M, f)) {
        put_slow(M, f, frame->owed && M->lane->pending_to);
        return;
    }
    if (frame->owed && M->lane->pending_to) {
        cpu->pcp[(cpu->pcp_head + cpu->pcp_count) & M->pcp_wrap] = f;
    } else {
        cpu->pcp_head = (cpu->pcp_head - 1) & M->pcp_wrap;
        cpu->pcp[cpu->pcp_head] = f;
    }
    cpu->pcp_count++;
    if ((int32_t)cpu->pcp_count > M->lane->pcp_high) {
        for (int k = smaller(M->lane->pcp_batch, (int32_t)cpu->pcp_count); k > 0; k--)
            push_free(M, cpu->pcp[(cpu->pcp_head + --cpu->pcp_count) & M->pcp_wrap]);
    }
}

/* A holder lets go of f; the last one frees it if its page is gone. */
static void put_frame(struct machine *M, int f, int c) {
    struct frame *frame = &M->frame[f];
    frame->refs--;
    if (frame->refs == 0 && (frame->state == HELD || frame->state == QUARANTINE)) free_frame(M, f, c);
}

static void flush_now(struct machine *M, int i) {
    flush_batch(M, i, M->batch_mask, PAY_RECLAIM);
    if (M->lane->absorb) {
        M->debt_mask &= ~M->batch_mask;
        M->deferred_mask &= ~M->batch_mask;
    }
    M->batch_mask = 0;
    M->need_flush = false;
}

static void forget_debt(struct frame *frame) {
    frame->owed = 0;
    frame->owner = NONE;
    frame->since = frame->tag_clock = 0;
}

/* The first half of a drain: what the batch owes is flushed, its frames stay. */
static void drain_half(struct machine *M, int i) {
    M->debt_mask |= M->deferred_mask;
    M->deferred_mask = 0;
    if (M->need_flush) flush_now(M, i);
    if (M->lane->init_on_free == INIT_PAID) discharge_all(M, i, PAY_RECLAIM);
}

static void drain(struct machine *M, int i) {
    drain_half(M, i);
    for (int k = 0; k < M->num_batch; k++) {
        struct frame *frame = &M->frame[M->batch_frame[k]];
        if (frame->state != BATCH) continue;
        if (frame->homed != NONE) clear_home(M, frame->homed);
        if (M->lane->init_on_free == INIT_PAID) forget_debt(frame);
        free_frame(M, M->batch_frame[k], i);
    }
    M->num_batch = 0;
}

/* Queue the flush of one cleared PTE; a deferred one leaves the trace that the mapping calls will look for. */
static void queue_flush(struct machine *M, struct frame *frame, int m, struct page *page, bool deferred) {
    const struct lane *lane = M->lane;
    struct process *mm = &M->process[m];
    mm->tlb_gen++;
    if (!deferred) {
        M->batch_mask |= mm->cpumask;
        M->need_flush = true;
        if (lane->batched_pending) mm->pending++;
        return;
    }
    M->deferred_mask |= mm->cpumask;
    frame->owed |= mm->cpumask;
    frame->owner = frame->owner == NONE || frame->owner == m ? m : M->shape->num_processes;
    frame->since = M->now;
    frame->tag_clock = M->unmap_clock;
    if (lane->debt_scope) {
        mm->owed |= mm->cpumask;
        mm->clock = M->unmap_clock;
        if (!is_anon(M, page->backing)) {
            M->file_page[page->backing].owed |= mm->cpumask;
            M->file_page[page->backing].clock = M->unmap_clock;
        }
    }
    if (lane->munmap_debt_rule == DEBT_PENDING || lane->munmap_debt_rule == DEBT_GATHER_HOOK) mm->pending++;
    if (lane->munmap_debt_rule == DEBT_VMA_FLAG) M->vma_flag[page->vma] = 1;
    if (lane->munmap_debt_rule == DEBT_PTE_MARKER || lane->va_rule) page->marker = 1;
    if (lane->va_rule) mm->va_debt = 1;
}

static inline bool has_remote(const struct machine *M, int i, int m) { return (M->process[m].cpumask & ~bit(i)) != 0; }

static bool is_deferred(const struct machine *M, int i, const int32_t *slot, bool any_writable, bool any_dirty, bool is_unsaved) {
    const struct lane *lane = M->lane;
    if (lane->reclaim_flush == RECLAIM_NEVER || lane->reclaim_flush == RECLAIM_PAGE || lane->init_on_free == INIT_REFUSED) return false;
    if (lane->defer_pages == DEFER_READ_ONLY && any_writable) return false;
    if (lane->defer_pages == DEFER_CLEAN && (any_dirty || is_unsaved)) return false;
    for (int r = 0; r < M->rmap_slots; r++)
        if (slot[r] != NONE && has_remote(M, i, slot[r] / M->num_vpns)) return true;
    return false;
}

struct unmapped { bool any_dirty, is_unsaved, is_deferred, is_queued; };

/* Clear every PTE of f; flush it, queue its flush, or defer it if the rules allow. */
static struct unmapped clear_ptes(struct machine *M, int f, int i, bool may_defer) {
    const struct lane *lane = M->lane;
    struct frame *frame = &M->frame[f];
    int32_t *slot = M->rmap + (size_t)f * M->rmap_slots, pages[MAX_CPUS * 4];
    int b = frame->homed, num_pages = 0;
    bool any_writable = false, any_dirty = false, is_queued = false;
    for (int r = 0; r < M->rmap_slots; r++) {
        if (slot[r] == NONE) continue;
        any_writable |= M->page[slot[r]].writable;
        any_dirty |= M->page[slot[r]].dirty;
    }
    bool is_unsaved = !(is_lazyfree(M, b) && !any_dirty) && frame->version != M->backing[b].stored;
    bool deferred = may_defer && is_deferred(M, i, slot, any_writable, any_dirty, is_unsaved);
    COUNT(deferred_unmaps) += deferred;
    for (int r = 0; r < M->rmap_slots; r++) {
        if (slot[r] == NONE) continue;
        int32_t key = slot[r];
        struct page *page = &M->page[key];
        clear_pte(M, page);
        if (lane->reclaim_flush == RECLAIM_NEVER) continue;
        int m = key / M->num_vpns;
        if (lane->reclaim_flush == RECLAIM_PAGE || !has_remote(M, i, m)) {
            pages[num_pages++] = key;
        } else {
            queue_flush(M, frame, m, page, deferred);
            is_queued = !deferred;
        }
    }
    for (int k = 0; k < num_pages; k++)
        flush_mm(M, i, pages[k] / M->num_vpns, one_page(pages[k] % M->num_vpns), false, PAY_RECLAIM);
    return (struct unmapped){ any_dirty, is_unsaved, deferred, is_queued };
}

static void unmap(struct machine *M, int f, int i) {
    const struct lane *lane = M->lane;
    struct frame *frame = &M->frame[f];
    int b = frame->homed;
    lru_remove(M, f);
    struct unmapped was = clear_ptes(M, f, i, lane->reclaim_flush == RECLAIM_TAKE_OFF || lane->reclaim_flush == RECLAIM_OWNER);
    COUNT(pglazyfreed) += is_lazyfree(M, b) && !was.any_dirty;
    if (was.any_dirty || was.is_unsaved) {
        if (lane->flush_dirty && was.any_dirty && was.is_deferred) {
            M->batch_mask |= M->deferred_mask;
            M->need_flush = true;
        }
        if (lane->flush_dirty && was.any_dirty && M->need_flush) flush_now(M, i);
        M->backing[b].stored = frame->version;
        M->backing[b].on_store = 1;
        M->backing[b].harvested = 1;
        COUNT(pgpgout)++;
    }
    frame->state = BATCH;
    if (lane->reclaim_remove) clear_home(M, b);
    M->batch_frame[M->num_batch] = f;
    M->batch_deferred[M->num_batch++] = was.is_deferred;
    if (M->num_batch >= lane->reclaim_batch) drain(M, i);
}

/* Clear the accessed bits of the PTEs that map f; true if any was set. */
static bool was_accessed(struct machine *M, int f) {
    const int32_t *slot = M->rmap + (size_t)f * M->rmap_slots;
    bool any = false;
    for (int r = 0; r < M->rmap_slots; r++) {
        if (slot[r] == NONE) continue;
        any |= M->page[slot[r]].accessed;
        M->page[slot[r]].accessed = 0;
    }
    return any;
}

static void demote(struct machine *M, int f, int i);

static void reclaim(struct machine *M, int i, int pages, int entries, bool is_direct) {
    while (pages > 0 && entries > 0 && lru_oldest(M) != NONE) {
        int f = lru_oldest(M);
        entries--;
        COUNT(pgscan)++;
        if (M->frame[f].refs > 0) {
            lru_remove(M, f);
            lru_append(M, f);
        } else if (was_accessed(M, f)) {
            lru_remove(M, f);
            lru_append(M, f);
            COUNT(pgrotated)++;
        } else {
            if (!is_slow(M, f) && M->num_slow > 0) {
                demote(M, f, i);
                M->count.scalar[is_direct ? C_pgdemote_direct : C_pgdemote_kswapd]++;
            } else {
                unmap(M, f, i);
            }
            pages--;
            M->count.scalar[is_direct ? C_pgsteal_direct : C_pgsteal_kswapd]++;
        }
    }
}

static void background(struct machine *M) {
    const struct lane *lane = M->lane;
    reclaim(M, lane->kswapd_cpu, 1, 4, false);
    if (M->num_free + M->num_batch >= lane->wmark_high || lru_oldest(M) == NONE) {
        drain(M, lane->kswapd_cpu);
        M->kswapd_on = false;
    }
}

static void sweep(struct machine *M, int c) {
    for (int m = 0; m < M->shape->num_processes; m++) {
        struct process *mm = &M->process[m];
        if (!(mm->sweep & bit(c))) continue;
        flush_process(M, c, m);
        *gen_done_of(M, c, m) = mm->tlb_gen;
        mm->sweep &= ~bit(c);
        COUNT(sweeps)++;
    }
}

static void release(struct machine *M, int i, bool all) {
    while (M->num_quarantine > 0) {
        struct quarantined entry = M->quarantine[M->quarantine_head];
        if (!all && M->cpu[0].ticks - entry.stamp < M->lane->latr_ticks) return;
        if (++M->quarantine_head == M->shape->quarantine_slots) M->quarantine_head = 0;
        M->num_quarantine--;
        if (M->process[entry.process].sweep) {
            flush_mm(M, i, entry.process, ALL, false, PAY_ALLOC);
            M->process[entry.process].sweep = 0;
            COUNT(give_ups)++;
        }
        put_frame(M, entry.frame, i);
    }
}

static void refill(struct machine *M, struct cpu *cpu) {
    M->task_tag = 0;
    if (cpu->pcp_count == 0)
        for (int k = smaller(M->lane->pcp_batch, M->num_free); k > 0; k--)
            cpu->pcp[(cpu->pcp_head + cpu->pcp_count++) & M->pcp_wrap] = pop_free(M);
}

/* A frame has left its list; its debt leaves the frame too. */
static int unlist(struct machine *M, int f, struct debt *debt) {
    struct frame *frame = &M->frame[f];
    if (frame->owed) COUNT(nr_pending)--;
    *debt = debt_of(M, frame);
    frame->owed = 0;
    frame->owner = NONE;
    frame->tag = frame->since = frame->tag_clock = frame->refs = 0;
    return f;
}

/* Take the head off the per-CPU list of c, or off the list of the slow tier. */
static int take_head(struct machine *M, int c, struct debt *debt) {
    struct cpu *cpu = &M->cpu[c];
    int f = cpu->pcp[cpu->pcp_head];
    cpu->pcp_head = (cpu->pcp_head + 1) & M->pcp_wrap;
    cpu->pcp_count--;
    return unlist(M, f, debt);
}

static int take_slow(struct machine *M, struct debt *debt) { return unlist(M, M->slow[--M->num_slow], debt); }

static int hand_out(struct machine *M, int c, int f, const struct debt *debt, int new_owner, bool is_foreign) {
    discharge(M, c, debt, new_owner, is_foreign);
    M->frame[f].handed = M->now;
    return f;
}

/* Take a frame off the lists, or NONE, and its debt. */
static int take_frame(struct machine *M, int c, struct debt *debt) {
    const struct lane *lane = M->lane;
    struct cpu *cpu = &M->cpu[c];
    if (lane->load_mode) {
        if (M->num_free < lane->wmark_low) M->kswapd_on = true;
        if (M->num_free < lane->wmark_min) {
            COUNT(allocstall)++;
            reclaim(M, c, 2, 4, true);
        }
        if (cpu->pcp_count == 0 && M->num_free == 0) {
            drain(M, c);
            if (cpu->pcp_count == 0 && M->num_free == 0) release(M, c, true);
        }
    }
    refill(M, cpu);
    if (cpu->pcp_count > 0) return take_head(M, c, debt);
    if (M->num_slow > 0) return take_slow(M, debt);
    COUNT(alloc_fail)++;
    return NONE;
}

static int alloc_frame(struct machine *M, int c, int new_owner, bool is_foreign) {
    struct debt debt;
    int f = take_frame(M, c, &debt);
    return f == NONE ? NONE : hand_out(M, c, f, &debt, new_owner, is_foreign);
}

/* The halves of alloc_frame for nobody; the task on c holds the frame in between. */
static bool take_off(struct machine *M, int c) {
    struct cpu *cpu = &M->cpu[c];
    if (cpu->taken != NONE) return false;
    cpu->taken = take_frame(M, c, &cpu->taken_debt);
    if (cpu->taken != NONE) M->frame[cpu->taken].state = TAKEN;
    return true;
}

static int finish_take_off(struct machine *M, int c) {
    int f = M->cpu[c].taken;
    M->cpu[c].taken = NONE;
    return f == NONE ? NONE : hand_out(M, c, f, &M->cpu[c].taken_debt, NONE, true);
}

/* Hand out a frame to nobody without waiting for other CPUs, or NONE; a flush that it needs all the same is a violation. */
static int alloc_atomic(struct machine *M, int c) {
    struct cpu *cpu = &M->cpu[c];
    int64_t sent = COUNT(nr_tlb_remote_flush_received);
    uint32_t refused = 0, last;
    struct debt debt;
    if (M->lane->load_mode && M->num_free < M->lane->wmark_low) M->kswapd_on = true;
    refill(M, cpu);
    last = cpu->pcp_count < 3 ? cpu->pcp_count : 3;
    if (M->lane->atomic_alloc)
        for (; refused < last; refused++) {
            debt = debt_of(M, &M->frame[cpu->pcp[(cpu->pcp_head + refused) & M->pcp_wrap]]);
            if (!unpaid(M, &debt)) break;
        }
    COUNT(atomic_refused) += refused;
    if (refused == last) {
        COUNT(alloc_fail)++;
        return NONE;
    }
    int32_t chosen = cpu->pcp[(cpu->pcp_head + refused) & M->pcp_wrap];
    for (uint32_t k = refused; k > 0; k--) cpu->pcp[(cpu->pcp_head + k) & M->pcp_wrap] = cpu->pcp[(cpu->pcp_head + k - 1) & M->pcp_wrap];
    cpu->pcp[cpu->pcp_head] = chosen;
    hand_out(M, c, take_head(M, c, &debt), &debt, NONE, true);
    if (COUNT(nr_tlb_remote_flush_received) > sent) violate(M, ATOMIC_FLUSH, 0, 1, c, NONE, NONE);
    return chosen;
}

/* ---- 5. Access ---- */

/* Is the CPU in a mapping call or a page fault that has not returned? */
static inline bool is_busy(const struct cpu *cpu) { return cpu->gather.kind || cpu->fault_vpn != NONE; }

/* Store through frame f to what should be backing b; what a store that is not stale writes will be written out. */
static void perform_store(struct machine *M, int f, int b, bool is_stale) {
    struct frame *frame = &M->frame[f];
    if (!is_stale) M->backing[b].harvested = 0;
    int32_t truth = ++M->backing[b].truth;
    bool names = frame->content == b;
    frame->content = names ? b : CORRUPT;
    frame->version = names ? truth : 0;
}

static void take_back(struct machine *M, int c, int f) {
    struct frame *frame = &M->frame[f];
    if (frame->state != BATCH) return;
    if (frame->owed && M->lane->kept_debt) {
        if (M->lane->kept_debt == KEPT_FLUSHED) flush_batch(M, c, frame->owed, PAY_FAULT);
        forget_debt(frame);
    }
    frame->state = USED;
    lru_append(M, f);
    COUNT(pgrescued)++;
}

static bool may_be_written(const struct machine *M, const struct page *page) {
    return (M->vma[page->vma] & (VMA_WRITE | VMA_MAYWRITE)) != 0;
}

/* What a fault pays before or after its PTE can be seen, if the page may ever be written. */
static void fault_hook(struct machine *M, int c, const struct page *page, int when) {
    if (M->lane->write_fault_flush == when && may_be_written(M, page)) forced_flush(M, c, M->cpu[c].loaded, shared_file(M, page), PAY_FAULT);
}

/* A dirty PTE: what is in the page will be written out again; and the program may store to it, if it could not since a fork. */
static void grant(struct machine *M, struct page *page) {
    M->backing[page->backing].harvested = 0;
    if (page->promise_mapped && page->promise_backing == page->backing) page->promise_writable = 1;
}

static void install(struct machine *M, int c, int m, int v, int f, bool is_store) {
    struct page *page = &M->page[m * M->num_vpns + v];
    if (page->marker && is_store && M->lane->marker_fault) flush_mm(M, c, m, ALL, false, PAY_FAULT);
    fault_hook(M, c, page, FAULT_BEFORE);
    page->present = page->accessed = 1;
    page->writable = page->dirty = is_store;
    page->marker = 0;
    page->frame = f;
    rmap_add(M, f, m * M->num_vpns + v);
    if (is_store) grant(M, page);
}

/* Does frame f wait in the batch for a flush that is not deferred? */
static bool awaits_flush(const struct machine *M, int f) {
    for (int k = 0; k < M->num_batch; k++)
        if (M->batch_frame[k] == f && !M->batch_deferred[k]) return true;
    return false;
}

static bool copy_on_write(struct machine *M, int c, int m, int v) {
    struct page *page = &M->page[m * M->num_vpns + v];
    int b = page->backing, f = alloc_frame(M, c, m, false);
    if (f == NONE) return false;
    int copy = fresh_id(M, b);
    if (copy == NONE) return false;
    if (M->backing[b].home == NONE && M->backing[b].on_store) COUNT(pgmajfault)++;
    bool owes_flush = page->present || awaits_flush(M, M->backing[b].home);
    if (page->present) clear_pte(M, page);
    if (owes_flush && M->lane->cow_flush) flush_mm(M, c, m, one_page(v), false, PAY_FAULT);
    page->backing = copy;
    if (page->promise_mapped && page->promise_backing == b) page->promise_backing = copy;
    move_in(M, f, copy, M->backing[copy].truth);
    if (is_anon(M, b)) {
        M->backing[b].sharers--;
        release_id(M, b);
    }
    install(M, c, m, v, f, true);
    return true;
}

/* A fault up to the installed PTE. False if it is not allowed or there is no frame. */
static bool resolve_fault(struct machine *M, int c, int m, int v, bool is_store) {
    struct page *page = &M->page[m * M->num_vpns + v];
    int32_t flags = page->vma == NONE ? 0 : M->vma[page->vma];
    COUNT(pgfault)++;
    if (!(flags & VMA_READ) || (is_store && !(flags & VMA_WRITE))) {
        COUNT(segv)++;
        return false;
    }
    int b = page->backing;
    if (is_gone(M, b)) {
        COUNT(sigbus)++;
        return false;
    }
    bool is_own = (flags & VMA_SHARED) || (is_anon(M, b) && !is_copy_on_write(M, page));
    if (is_store && page->present && M->lane->write_fault_flush == FAULT_WP) forced_flush(M, c, m, shared_file(M, page), PAY_FAULT);
    if (page->present && is_own) {
        fault_hook(M, c, page, FAULT_BEFORE);
        page->writable = page->dirty = page->accessed = 1;
        grant(M, page);
        return true;
    }
    if (is_store && !is_own) return copy_on_write(M, c, m, v);
    int f = M->backing[b].home;
    if (f != NONE) {
        take_back(M, c, f);
    } else {
        f = alloc_frame(M, c, m, false);
        if (f == NONE) return false;
        if (is_lazyfree(M, b)) M->backing[b].stored = ++M->backing[b].truth;
        move_in(M, f, b, M->backing[b].stored);
        if (M->backing[b].on_store) COUNT(pgmajfault)++;
    }
    install(M, c, m, v, f, is_store);
    return true;
}

static void page_fault(struct machine *M, int c, int m, int v, bool is_store) {
    uint32_t key = (uint32_t)(m * M->num_vpns + v);
    struct page *page = &M->page[key];
    if (!resolve_fault(M, c, m, v, is_store)) return;
    fault_hook(M, c, page, FAULT_AFTER);
    fill_both(M, c, v, key, page);
    if (is_store) perform_store(M, page->frame, page->backing, false);
}

/* Is a call in progress that takes the page away, and that has visited it? */
static bool is_being_dropped(const struct machine *M, int m, int v) {
    const struct page *page = &M->page[m * M->num_vpns + v];
    for (int c = 0; c < M->shape->num_cpus; c++) {
        const struct gather *gather = &M->cpu[c].gather;
        bool takes_away = gather->kind == MUNMAP || gather->kind == DONTNEED || gather->kind == MREMAP || gather->kind == EXIT;
        if (takes_away && M->cpu[c].loaded == m && gather->vs <= v && v < gather->ve)
            return page->vma == NONE || !(M->vma[page->vma] & VMA_SHARED);
    }
    return false;
}

/* 8. What is checked: an access through a stale entry. */
static void judge_stale(struct machine *M, int c, int m, int v, const struct way *entry, int n, bool is_store) {
    const struct page *page = &M->page[m * M->num_vpns + v];
    struct frame *frame = &M->frame[entry->frame];
    const struct backing *backing = page->promise_mapped ? &M->backing[page->promise_backing] : NULL;
    int b = page->promise_backing;
    bool exact = backing && frame->content == b && frame->version == backing->truth;
    bool is_dropped = is_being_dropped(M, m, v), is_backed = page->backing == b && !is_dropped;
    bool advanced = page->epoch > entry->filled, named = backing && !advanced && is_backed, wrong[NUM_CLASSES] = { false };
    wrong[REUSE] = frame->handed > entry->filled && !exact;
    wrong[MAPPING] = advanced && !is_dropped && !exact;
    wrong[PERMISSION] = is_store && backing && !page->promise_writable;
    wrong[LOST_STORE] = is_store && (named || (exact && is_backed)) && (backing->home != entry->frame || backing->harvested);
    bool is_old = named && (frame->content == b || (backing->parent != NONE && frame->content == backing->parent));
    wrong[OLD_VALUE] = !is_store && is_old && !exact;
    bool any = false;
    for (int k = 0; k < NUM_CLASSES; k++) {
        if (!wrong[k]) continue;
        any = true;
        violate(M, k, is_store, n, c, m, v);
    }
    if (!any) COUNT(tolerated) += n;
    if (!any && advanced) COUNT(tolerated_epoch) += n;
    tally(M, AGE_AT_USE, M->now - page->changed, n);
    if (!is_store) return;
    if (backing) {
        perform_store(M, entry->frame, b, true);
    } else {
        frame->content = CORRUPT;
        frame->version = 0;
    }
}

static bool access_page(struct machine *M, int c, int v, int n, bool is_store) {
    struct cpu *cpu = &M->cpu[c];
    if (cpu->lazy || is_busy(cpu)) return false;
    int m = cpu->loaded;
    uint32_t key = (uint32_t)(m * M->num_vpns + v);
    struct page *page = &M->page[key];
    COUNT(accesses) += n;
    if (is_store) COUNT(stores) += n;
    else COUNT(loads) += n;

    struct way *entry = NULL;
    uint32_t set = M->set1[v];
    int w = find_way(cpu->tag + set, M->shape->l1.ways, key);
    bool is_l1 = w != NONE;
    if (is_l1) {
        entry = &cpu->way[set + w];
    } else {
        set = M->set2[v];
        w = find_way(cpu->tag + set, M->shape->l2.ways, key);
        if (w != NONE) {
            entry = &cpu->way[set + w];
            COUNT(stlb_hit)++;
        } else if (is_store) {
            COUNT(dtlb_store_misses)++;
        } else {
            COUNT(dtlb_load_misses)++;
        }
    }
    if (entry && (!is_store || (entry->writable && entry->dirty))) {
        struct way used = *entry;
        entry->used = M->now;
        if (!is_l1) fill_level(cpu, M->set1[v], M->shape->l1.ways, key, used, M->now);
        if (!page->present || page->frame != used.frame || (is_store && !(page->writable && page->dirty)))
            judge_stale(M, c, m, v, &used, n, is_store);
        else if (is_store)
            perform_store(M, used.frame, page->backing, false);
        return true;
    }
    if (page->present && (page->writable || !is_store)) {
        if (!entry) COUNT(walk_completed)++;
        else if (!entry->writable) COUNT(spurious_fault)++;
        page->accessed = 1;
        if (is_store) page->dirty = 1;
        fill_both(M, c, v, key, page);
        if (is_store) perform_store(M, page->frame, page->backing, false);
        return true;
    }
    if (entry) drop_entry(M, c, v, key);
    page_fault(M, c, m, v, is_store);
    return true;
}

/* ---- 7. Halves of a fault ---- */

static bool is_usable(const struct cpu *cpu, uint32_t set, int ways, uint32_t key, bool is_store) {
    int w = find_way(cpu->tag + set, ways, key);
    return w != NONE && (!is_store || (cpu->way[set + w].writable && cpu->way[set + w].dirty));
}

static bool fault_install(struct machine *M, int c, int v, bool is_store) {
    struct cpu *cpu = &M->cpu[c];
    if (cpu->lazy || is_busy(cpu)) return false;
    int m = cpu->loaded;
    uint32_t key = (uint32_t)(m * M->num_vpns + v);
    const struct page *page = &M->page[key];
    if (page->present && (page->writable || !is_store)) return false;
    if (is_usable(cpu, M->set1[v], M->shape->l1.ways, key, is_store) || is_usable(cpu, M->set2[v], M->shape->l2.ways, key, is_store))
        return false;
    drop_entry(M, c, v, key);
    if (resolve_fault(M, c, m, v, is_store)) {
        cpu->fault_vpn = v;
        cpu->fault_pays = may_be_written(M, page);
    }
    return true;
}

static bool fault_finish(struct machine *M, int c, int v) {
    struct cpu *cpu = &M->cpu[c];
    if (cpu->fault_vpn != v) return false;
    cpu->fault_vpn = NONE;
    if (cpu->fault_pays && M->lane->write_fault_flush == FAULT_AFTER)
        forced_flush(M, c, cpu->loaded, shared_file(M, &M->page[cpu->loaded * M->num_vpns + v]), PAY_FAULT);
    return true;
}

/* ---- 7. Mapping calls ---- */

static inline void widen(int32_t *start, int32_t *end, int v, bool is_empty) {
    *start = is_empty ? v : smaller(*start, v);
    *end = is_empty ? v + 1 : larger(*end, v + 1);
}

static void note_cleared(struct gather *gather, int v) {
    widen(&gather->cs, &gather->ce, v, !gather->cleared);
    gather->cleared = 1;
}

static void debt_rule(struct machine *M, int c, int m, int v, struct gather *gather) {
    struct process *mm = &M->process[m];
    struct page *page = &M->page[m * M->num_vpns + v];
    if (mm->pending != mm->flushed) {
        request_mm(M, c, m, ALL, true, PAY_MAPPING, true);
        mm->flushed = mm->pending;
    }
    if (M->lane->munmap_debt_rule == DEBT_VMA_FLAG && M->vma_flag[page->vma]) {
        flush_mm(M, c, m, ALL, false, PAY_MAPPING);
        M->vma_flag[page->vma] = 0;
    }
    if (M->lane->munmap_debt_rule == DEBT_GATHER_HOOK) forced_flush(M, c, m, shared_file(M, page), PAY_MAPPING);
    if (M->lane->munmap_debt_rule == DEBT_PTE_MARKER && page->marker) {
        note_cleared(gather, v);
        if (!M->lane->va_rule) page->marker = 0;
    }
}

static bool is_held_by(const struct gather *gather, int f) {
    for (int k = 0; k < gather->num_held; k++)
        if (gather->held[k] == f) return true;
    return false;
}

static void hold(struct machine *M, struct gather *gather, int f) {
    M->frame[f].refs++;
    if (gather->num_held < M->shape->gather_slots) gather->held[gather->num_held++] = f;
    else M->fault |= GATHER_FULL;
}

static void zap(struct machine *M, int m, int v, struct gather *gather) {
    struct page *page = &M->page[m * M->num_vpns + v];
    int b = page->backing, f = M->backing[b].home;
    bool was_present = page->present;
    if (was_present) {
        clear_pte(M, page);
        note_cleared(gather, v);
    }
    if (has_sharers(M, b)) {
        M->backing[b].sharers--;
        if (was_present) hold(M, gather, f);
    } else if (is_anon(M, b) && f != NONE) {
        clear_home(M, b);
        if (M->frame[f].state == USED) {
            lru_remove(M, f);
            M->frame[f].state = HELD;
            hold(M, gather, f);
        }
    } else if (!is_anon(M, b) && was_present) {
        hold(M, gather, f);
    }
}

/* Promise := the mapping; the anonymous id that the old promise alone named is released. */
static void advance_promise(struct machine *M, struct page *page, bool may_release) {
    bool is_mapped = page->vma != NONE;
    if (may_release && page->promise_mapped && is_anon(M, page->promise_backing) &&
        (!is_mapped || page->promise_backing != page->backing))
        release_id(M, page->promise_backing);
    page->promise_mapped = is_mapped;
    page->promise_writable = is_mapped && (M->vma[page->vma] & VMA_WRITE) && !is_copy_on_write(M, page);
    page->promise_backing = is_mapped ? page->backing : NONE;
}

static void unmap_dontneed(struct machine *M, int m, int v, struct gather *gather) {
    struct page *page = &M->page[m * M->num_vpns + v];
    int b = page->backing;
    zap(M, m, v, gather);
    if (!is_anon(M, b)) return;
    int origin = M->backing[b].origin;
    page->backing = origin != NONE ? origin : fresh_id(M, b);
    if (!page->promise_mapped || page->promise_backing != b) release_id(M, b);
}

static void change_protection(struct machine *M, int m, int v, int vma, struct gather *gather) {
    struct page *page = &M->page[m * M->num_vpns + v];
    int32_t flags = M->vma[vma];
    M->vma_flag[vma] |= M->vma_flag[page->vma];
    page->vma = (int16_t)vma;
    bool is_copied = is_copy_on_write(M, page);
    if ((flags & VMA_WRITE) && !is_copied) page->promise_writable = 1;
    if (!page->present) return;
    if (!(flags & VMA_READ)) {
        hold(M, gather, page->frame);
        clear_pte(M, page);
    } else if (!(flags & VMA_WRITE) && page->writable) {
        page->writable = 0;
        page->changed = M->now;
    } else if ((flags & VMA_WRITE) && !page->writable && page->dirty && !is_copied && ((flags & VMA_SHARED) || is_anon(M, page->backing))) {
        page->writable = 1;
    } else {
        return;
    }
    note_cleared(gather, v);
}

/* A page is mapped where none was: pay what the address owes. */
static void settle_marker(struct machine *M, int c, int m, int v) {
    struct page *page = &M->page[m * M->num_vpns + v];
    if (!page->marker) return;
    if (M->lane->va_rule) {
        if (M->process[m].va_debt) flush_mm(M, c, m, ALL, false, PAY_MAPPING);
    } else if (M->lane->munmap_debt_rule == DEBT_PTE_MARKER) {
        flush_mm(M, c, m, one_page(v), false, PAY_MAPPING);
    } else {
        return;
    }
    page->marker = 0;
}

/* MREMAP: page v moves to w, where nothing is mapped; its frame is kept until the old address is flushed. */
static void move_page(struct machine *M, int c, int m, int v, int w, struct gather *gather) {
    struct page *page = &M->page[m * M->num_vpns + v], *to = &M->page[m * M->num_vpns + w];
    settle_marker(M, c, m, w);
    if (page->present) {
        int32_t *slot = M->rmap + (size_t)page->frame * M->rmap_slots, r = 0;
        while (slot[r] != m * M->num_vpns + v) r++;
        if (!is_held_by(gather, page->frame)) hold(M, gather, page->frame);
        note_cleared(gather, v);
        to->present = 1;
        to->writable = page->writable;
        to->accessed = page->accessed;
        to->dirty = page->dirty;
        to->frame = page->frame;
        to->marker = 0;
        clear_pte(M, page);
        slot[r] = m * M->num_vpns + w;
    }
    to->vma = page->vma;
    to->backing = page->backing;
    page->vma = NONE;
    page->backing = NONE;
    advance_promise(M, to, false);
    to->epoch = M->now;
    if (is_anon(M, to->backing)) M->backing[to->backing].shared++;
}

/* FORK: page v of a child becomes a copy, and anonymous content is shared until one of them stores to it. */
static void copy_page(struct machine *M, int c, int m, int v, int child, int vma, struct gather *gather) {
    int key = child * M->num_vpns + v;
    struct page *page = &M->page[m * M->num_vpns + v], *copy = &M->page[key];
    int b = page->backing;
    settle_marker(M, c, child, v);
    M->vma_flag[vma] |= M->vma_flag[page->vma];
    copy->vma = (int16_t)vma;
    copy->backing = b;
    if (is_anon(M, b)) {
        M->backing[b].shared++;
        M->backing[b].sharers++;
    }
    advance_promise(M, copy, false);
    copy->epoch = M->now;
    if (!page->present || !is_anon(M, b) || (M->vma[page->vma] & VMA_SHARED)) return;
    copy->present = 1;
    copy->writable = copy->accessed = copy->marker = 0;
    copy->dirty = page->dirty;
    copy->frame = page->frame;
    rmap_add(M, page->frame, key);
    if (page->writable) {
        page->writable = 0;
        page->changed = M->now;
        note_cleared(gather, v);
    }
}

/* MADVISE_FREE: nobody minds if the content goes, unless something is stored after the call. */
static void let_go(struct machine *M, struct page *page, int v, struct gather *gather) {
    if (has_sharers(M, page->backing)) return;
    if (!page->present) {
        if (M->backing[page->backing].home == NONE) make_lazyfree(M, page->backing);
        return;
    }
    if (!is_held_by(gather, page->frame)) hold(M, gather, page->frame);
    if (page->accessed || page->dirty) note_cleared(gather, v);
    if (page->dirty) page->changed = M->now;
    page->accessed = page->dirty = 0;
}

/* Calls that hold the lock of the address space for reading; the others exclude one another and these. */
static inline bool is_shared_kind(int op) { return op == DONTNEED || op == MADVISE_FREE; }

/* May CPU c change the mappings of its process? `writes`: the call is exclusive. */
static bool may_map(const struct machine *M, int c, bool writes) {
    const struct cpu *cpu = &M->cpu[c];
    if (cpu->lazy || cpu->fault_vpn != NONE) return false;
    const struct process *mm = &M->process[cpu->loaded];
    int own_shared = is_shared_kind(cpu->gather.kind), own_excl = cpu->gather.kind && !own_shared;
    if (mm->excl - own_excl > 0) return false;
    return !writes || mm->gathers - mm->excl - own_shared == 0;
}

static bool runs_elsewhere(const struct machine *M, int c, int m) {
    for (int k = 0; k < M->shape->num_cpus; k++)
        if (k != c && M->cpu[k].loaded == m && !M->cpu[k].lazy) return true;
    return false;
}

/* Can page v of process m be copied to a child? */
static bool may_fork(const struct machine *M, int m, int v, int child) {
    const struct page *page = &M->page[m * M->num_vpns + v], *copy = &M->page[child * M->num_vpns + v];
    if (child == m || M->process[child].gathers) return false;
    return page->vma == NONE || (copy->vma == NONE && !copy->promise_mapped);
}

static bool page_event(struct machine *M, int c, int op, int v, int arg, int32_t repeat) {
    struct gather *gather = &M->cpu[c].gather;
    if (!may_map(M, c, !is_shared_kind(op)) || (gather->kind && gather->kind != op)) return false;
    if (is_shared_kind(gather->kind) && v < gather->ve) return false;
    int m = M->cpu[c].loaded;
    struct page *page = &M->page[m * M->num_vpns + v];
    const struct page *to = &M->page[m * M->num_vpns + (op == MREMAP ? arg : v)];
    if (op == EXIT && runs_elsewhere(M, c, m)) return false;
    if (op == MREMAP && page->vma != NONE && (to->vma != NONE || to->promise_mapped)) return false;
    if (op == FORK && !may_fork(M, m, v, arg)) return false;
    bool is_new = !gather->kind;
    if (is_new) {
        gather->kind = op;
        gather->cleared = gather->cs = gather->ce = gather->num_held = 0;
        M->process[m].gathers++;
        if (!is_shared_kind(op)) M->process[m].excl++;
    }
    widen(&gather->vs, &gather->ve, v, is_new);
    if (gather->ve - gather->vs > M->shape->gather_slots) {
        M->fault |= GATHER_FULL;
        return true;
    }
    if (page->vma == NONE || (op == MADVISE_FREE && !(M->vma[page->vma] & VMA_ANON))) return true;
    if (op != FORK) debt_rule(M, c, m, v, gather);
    struct page before = *page;
    if (op == MUNMAP || op == EXIT) {
        zap(M, m, v, gather);
        page->vma = NONE;
        page->backing = NONE;
    } else if (op == MREMAP) {
        move_page(M, c, m, v, arg, gather);
    } else if (op == FORK) {
        copy_page(M, c, m, v, arg, repeat, gather);
    } else if (op == MADVISE_FREE) {
        let_go(M, page, v, gather);
    } else if (op == DONTNEED) {
        unmap_dontneed(M, m, v, gather);
    } else {
        change_protection(M, m, v, arg, gather);
    }
    if (M->lane->gather_flush == GATHER_PAGE && (page->present != before.present || page->writable != before.writable ||
                                                 page->accessed != before.accessed || page->dirty != before.dirty))
        flush_mm(M, c, m, one_page(v), false, PAY_MAPPING);
    return true;
}

static void mark_range(struct machine *M, int m, const struct gather *gather) {
    struct page *page = M->page + m * M->num_vpns;
    for (int v = gather->cs; v < gather->ce; v++)
        if (!page[v].present) page[v].marker = 1;
    M->process[m].va_debt = 1;
}

/* gather_flush=owner: the frames of a gather owe a flush until they are handed to somebody else. */
static void owe_gather(struct machine *M, int m, const struct gather *gather) {
    struct process *mm = &M->process[m];
    mm->tlb_gen++;
    for (int k = 0; k < gather->num_held; k++) {
        struct frame *frame = &M->frame[gather->held[k]];
        frame->owed |= mm->cpumask;
        frame->owner = frame->owner == NONE || frame->owner == m ? m : M->shape->num_processes;
        frame->since = M->now;
        frame->tag_clock = M->unmap_clock;
        COUNT(deferred_unmaps)++;
    }
    mark_range(M, m, gather);
}

/* gather_flush=ticks: flush here, let the others sweep at their next tick, keep the frames until then. */
static void quarantine_gather(struct machine *M, int c, int m, struct range range, struct gather *gather) {
    struct process *mm = &M->process[m];
    mm->tlb_gen++;
    if (mm->cpumask & bit(c)) flush_here(M, c, m, limit(M, range));
    M->unmap_clock++;
    mm->sweep |= mm->cpumask & ~bit(c);
    for (int k = 0; k < gather->num_held; k++) {
        struct frame *frame = &M->frame[gather->held[k]];
        bool is_held = frame->state == HELD;
        if (is_held) frame->state = QUARANTINE;
        int tail = (M->quarantine_head + M->num_quarantine++) % M->shape->quarantine_slots;
        M->quarantine[tail] = (struct quarantined){ gather->held[k], is_held ? 0 : 1, M->cpu[0].ticks, m };
    }
    gather->num_held = 0;
    mark_range(M, m, gather);
}

/* At the return of a MADVISE_FREE: unless something was stored, or the page went, since its page event. */
static void mark_lazyfree(struct machine *M, int f) {
    const int32_t *slot = M->rmap + (size_t)f * M->rmap_slots;
    if (M->frame[f].state != USED) return;
    for (int r = 0; r < M->rmap_slots; r++)
        if (slot[r] != NONE && M->page[slot[r]].dirty) return;
    make_lazyfree(M, M->frame[f].homed);
    COUNT(pglazyfree)++;
}

static void free_held(struct machine *M, int c, struct gather *gather) {
    for (int k = 0; k < gather->num_held; k++) {
        if (gather->kind == MADVISE_FREE) mark_lazyfree(M, gather->held[k]);
        put_frame(M, gather->held[k], c);
    }
    gather->num_held = 0;
}

/* What a finished mapping call flushes, and when. `may_defer`: not for MPROTECT and MAP_FIXED. */
static void finish_flush(struct machine *M, int c, int m, struct gather *gather, bool arg, bool nested, bool may_defer) {
    bool always = M->lane->munmap_debt_rule == DEBT_ALWAYS;
    int rule = M->lane->gather_flush;
    if (!gather->cleared && !arg && !nested && !always) return;
    struct range range = nested || always || !gather->cleared || gather->kind == EXIT || gather->kind == FORK ? ALL : (struct range){ gather->cs, gather->ce, false };
    if (rule == GATHER_NONE || (rule == GATHER_PAGE && !arg && !always)) return;
    if (may_defer && rule == GATHER_OWNER && !arg) {
        if (gather->cleared) owe_gather(M, m, gather);
        return;
    }
    if (may_defer && rule == GATHER_TICKS && gather->cleared && !arg &&
        M->num_quarantine + gather->num_held <= M->lane->quarantine_slots) {
        quarantine_gather(M, c, m, range, gather);
        return;
    }
    flush_mm(M, c, m, range, arg || nested, PAY_MAPPING);
}

static bool gather_finish(struct machine *M, int c, bool arg) {
    struct gather *gather = &M->cpu[c].gather;
    if (!gather->kind) return false;
    int m = M->cpu[c].loaded;
    struct process *mm = &M->process[m];
    int kind = gather->kind;
    bool is_protect = kind == MPROTECT || kind == FORK;
    finish_flush(M, c, m, gather, arg || kind == FORK, mm->gathers > 1, kind == MUNMAP || kind == DONTNEED);
    free_held(M, c, gather);
    for (int v = gather->vs; kind != MADVISE_FREE && v < gather->ve; v++) {
        struct page *page = &M->page[m * M->num_vpns + v];
        advance_promise(M, page, !is_protect);
        if (!is_protect) page->epoch = M->now;
    }
    mm->gathers--;
    if (!is_shared_kind(kind)) mm->excl--;
    gather->kind = 0;
    if (kind == EXIT && arg) {
        mm->cpumask &= ~bit(c);
        M->cpu[c].loaded = NONE;
        M->cpu[c].lazy = 1;
    }
    COUNT(nr_gathers)++;
    return true;
}

/* Zap a page with a gather of its own that opens, flushes and frees within the event. */
static void zap_now(struct machine *M, int c, int m, int v) {
    int32_t held[1];
    struct gather gather = { .kind = MUNMAP, .vs = v, .ve = v + 1, .held = held };
    bool was_present = M->page[m * M->num_vpns + v].present;
    debt_rule(M, c, m, v, &gather);
    zap(M, m, v, &gather);
    if (was_present && M->lane->gather_flush == GATHER_PAGE) flush_mm(M, c, m, one_page(v), false, PAY_MAPPING);
    finish_flush(M, c, m, &gather, false, M->process[m].gathers > 0, false);
    free_held(M, c, &gather);
}

static bool map_page(struct machine *M, int c, int v, int backing, int32_t packed) {
    const struct lane *lane = M->lane;
    int vma = packed % FIRST_PAGE;
    if (M->cpu[c].gather.kind || !may_map(M, c, true)) return false;
    int m = M->cpu[c].loaded;
    struct page *page = &M->page[m * M->num_vpns + v];
    bool is_first = packed >= FIRST_PAGE;
    if (is_first && lane->mmap_flush && (M->vma[vma] & VMA_WRITE)) forced_flush(M, c, m, M->vma[vma] & VMA_SHARED ? backing : NONE, PAY_MAPPING);
    if (lane->va_rule || page->vma == NONE) settle_marker(M, c, m, v);
    if (page->vma != NONE) {
        zap_now(M, c, m, v);
        page->vma = NONE;
        advance_promise(M, page, true);
    }
    if (is_first) M->vma_flag[vma] = 0;
    page->vma = (int16_t)vma;
    page->backing = backing == NONE ? fresh_id(M, NONE) : backing;
    advance_promise(M, page, false);
    page->epoch = M->now;
    return true;
}

/* ---- 7. Other events ---- */

static bool file_write(struct machine *M, int c, int b) {
    int f = M->backing[b].home;
    if (f != NONE) {
        take_back(M, c, f);
    } else {
        f = alloc_frame(M, c, M->cpu[c].loaded, false);
        if (f == NONE) return true;
        move_in(M, f, b, M->backing[b].stored);
    }
    if (M->lane->file_write_flush) forced_flush(M, c, NONE, b, PAY_FAULT);
    M->frame[f].content = b;
    M->frame[f].version = ++M->backing[b].truth;
    M->backing[b].harvested = 0;
    M->backing[b].on_store = 1;
    return true;
}

/* Take a file page away from page (m, v); a private copy is forgotten and its file page is mapped again. */
static void withdraw(struct machine *M, int c, int m, int v, int b) {
    struct page *page = &M->page[m * M->num_vpns + v];
    int old = page->backing;
    zap_now(M, c, m, v);
    if (old == b) return;
    page->backing = b;
    if (page->promise_mapped && page->promise_backing == old) {
        page->promise_backing = b;
        page->epoch = M->now;
    }
    release_id(M, old);
}

/* REMOTE_WRITE: the page changes on the server, and is dropped if it is cached. TRUNCATE: the file ends before it. */
static bool replace_page(struct machine *M, int c, int b, bool truncates) {
    struct backing *backing = &M->backing[b];
    if (M->lane->invalidate_flush) forced_flush(M, c, NONE, b, PAY_MAPPING);
    for (int k = 0; k < M->num_batch; k++)
        if (M->batch_frame[k] == backing->home) {
            drain(M, c);
            break;
        }
    bool walks = truncates;
    if (backing->home != NONE) {
        walks |= M->frame[backing->home].refs > 0;
        for (int r = 0; r < M->rmap_slots; r++) walks |= M->rmap[(size_t)backing->home * M->rmap_slots + r] != NONE;
    }
    for (int m = 0; walks && m < M->shape->num_processes; m++)
        for (int v = 0; v < M->num_vpns; v++) {
            const struct page *page = &M->page[m * M->num_vpns + v];
            if (page->vma == NONE) continue;
            bool is_copy = is_anon(M, page->backing) && M->backing[page->backing].origin == b;
            if (page->backing == b || (truncates && is_copy)) withdraw(M, c, m, v, b);
        }
    if (backing->home != NONE) {
        int f = backing->home;
        clear_home(M, b);
        lru_remove(M, f);
        M->frame[f].state = HELD;
        if (M->frame[f].refs == 0) free_frame(M, f, c);
    }
    backing->stored = ++backing->truth;
    backing->harvested = 0;
    backing->on_store = !truncates;
    return true;
}

/* The home of page (m, v), if it may be unmapped now, or NONE. */
static int movable(const struct machine *M, int m, int v) {
    const struct page *page = &M->page[m * M->num_vpns + v];
    int f = page->vma == NONE ? NONE : M->backing[page->backing].home;
    return f == NONE || M->frame[f].state != USED || M->frame[f].refs != 0 ? NONE : f;
}

static bool reclaim_event(struct machine *M, int c, int v, int m) {
    if (m == NONE) {
        reclaim(M, c, 1, 4, true);
        return true;
    }
    int f = movable(M, m, v);
    if (f == NONE) return false;
    unmap(M, f, c);
    COUNT(pgsteal_direct)++;
    return true;
}

/* A frame of one tier for nobody, without reclaim, or NONE. */
static int alloc_in(struct machine *M, int c, bool slow) {
    struct debt debt;
    M->task_tag = 0;
    if (!slow) {
        if (M->lane->load_mode && M->num_free < M->lane->wmark_low) M->kswapd_on = true;
        refill(M, &M->cpu[c]);
    }
    if (slow ? M->num_slow == 0 : M->cpu[c].pcp_count == 0) return NONE;
    int f = slow ? take_slow(M, &debt) : take_head(M, c, &debt);
    return hand_out(M, c, f, &debt, NONE, true);
}

/* The page of f, at home in it, is at home in f2 from now on; the PTEs in rmap slots `slot`, whose bits are `old`, name f2. */
static void rehome(struct machine *M, int f, int f2, const int32_t *slot, const struct page *old) {
    int b = M->frame[f].homed;
    uint8_t harvested = M->backing[b].harvested;
    clear_home(M, b);
    move_in(M, f2, b, M->frame[f].version);
    M->frame[f2].content = M->frame[f].content;
    M->backing[b].harvested = harvested;
    for (int r = 0; r < M->rmap_slots; r++) {
        M->rmap[(size_t)f2 * M->rmap_slots + r] = slot[r];
        if (slot[r] == NONE) continue;
        struct page *page = &M->page[slot[r]];
        page->frame = f2;
        page->present = 1;
        page->marker = 0;
        page->writable = old[r].writable;
        page->accessed = old[r].accessed;
        page->dirty = old[r].dirty;
    }
}

/* Unmap f, give its page to f2 and map that; free f. */
static void move_page_to(struct machine *M, int f, int f2, int c) {
    const struct lane *lane = M->lane;
    struct page old[MAX_CPUS * 4];
    int32_t slot[MAX_CPUS * 4];
    memcpy(slot, M->rmap + (size_t)f * M->rmap_slots, (size_t)M->rmap_slots * sizeof *slot);
    for (int r = 0; r < M->rmap_slots; r++)
        if (slot[r] != NONE) old[r] = M->page[slot[r]];
    lru_remove(M, f);
    struct unmapped was = clear_ptes(M, f, c, lane->migrate_flush == MIGRATE_DEFER);
    if (was.is_deferred) {
        M->debt_mask |= M->deferred_mask;
        M->deferred_mask = 0;
    } else if (was.is_queued && lane->migrate_flush != MIGRATE_OFF) {
        flush_now(M, c);
    }
    rehome(M, f, f2, slot, old);
    if (M->frame[f].owed && lane->init_on_free == INIT_PAID) {
        discharge_all(M, c, PAY_RECLAIM);
        forget_debt(&M->frame[f]);
    }
    free_frame(M, f, c);
    COUNT(pgmigrate_success)++;
    COUNT(pgpromote_success) += is_slow(M, f);
}

static void demote(struct machine *M, int f, int i) { move_page_to(M, f, alloc_in(M, i, true), i); }

static bool migrate(struct machine *M, int c, int v, int m) {
    const struct lane *lane = M->lane;
    int f = movable(M, m, v);
    if (f == NONE) return false;
    for (int k = 0; k < M->num_batch; k++)
        if (M->batch_frame[k] == f) return false;
    int f2 = alloc_in(M, c, lane->fast_frames < lane->frames_in_use && !is_slow(M, f));
    if (f2 == NONE) {
        COUNT(pgmigrate_fail)++;
        return true;
    }
    move_page_to(M, f, f2, c);
    return true;
}

/* Frame f, if there is one, is used by somebody who maps nothing. */
static bool give_away(struct machine *M, int f) {
    if (f == NONE) return true;
    M->frame[f].state = FOREIGN;
    M->frame[f].content = FOREIGN_CONTENT;
    M->frame[f].version = 0;
    M->foreign[M->num_foreign++] = f;
    return true;
}

static bool free_foreign(struct machine *M, int c) {
    if (M->num_foreign == 0) return false;
    free_frame(M, M->foreign[--M->num_foreign], c);
    return true;
}

static bool switch_to(struct machine *M, int c, int m) {
    struct cpu *cpu = &M->cpu[c];
    if (is_busy(cpu)) return false;
    if (m == NONE) {
        cpu->lazy = 1;
        return true;
    }
    sweep(M, c);
    if (cpu->loaded != m) {
        if (!M->lane->mask_on_switch && cpu->loaded != NONE) M->process[cpu->loaded].cpumask &= ~bit(c);
        cpu->loaded = m;
        COUNT(switches)++;
    }
    cpu->lazy = 0;
    M->process[m].cpumask |= bit(c);
    int32_t *done = gen_done_of(M, c, m);
    if (M->lane->switch_flush && *done != M->process[m].tlb_gen) {
        flush_process(M, c, m);
        *done = M->process[m].tlb_gen;
        COUNT(switch_flushes)++;
    }
    return true;
}

static bool tick(struct machine *M, int c) {
    M->cpu[c].ticks++;
    sweep(M, c);
    if (c == 0) release(M, c, false);
    return true;
}

static bool run_op(struct machine *M, int c, int op, int v, int arg, int32_t repeat) {
    switch (op) {
    case LOAD: return access_page(M, c, v, repeat, false);
    case STORE: return access_page(M, c, v, repeat, true);
    case MMAP: return map_page(M, c, v, arg, repeat);
    case MUNMAP:
    case MPROTECT:
    case DONTNEED:
    case MADVISE_FREE:
    case MREMAP:
    case FORK:
    case EXIT: return page_event(M, c, op, v, arg, repeat);
    case GATHER_FINISH: return gather_finish(M, c, arg != 0);
    case FILE_WRITE: return file_write(M, c, arg);
    case RECLAIM: return reclaim_event(M, c, v, arg);
    case MIGRATE: return migrate(M, c, v, arg);
    case RECLAIM_FLUSH:
        if (arg) drain_half(M, c);
        else drain(M, c);
        return true;
    case ALLOC_FOREIGN: return give_away(M, alloc_frame(M, c, NONE, true));
    case FAULT_INSTALL: return fault_install(M, c, v, arg != 0);
    case FAULT_FINISH: return fault_finish(M, c, v);
    case TAKE_OFF: return take_off(M, c);
    case DISCHARGE: return M->cpu[c].taken != NONE && give_away(M, finish_take_off(M, c));
    case ALLOC_ATOMIC: return give_away(M, alloc_atomic(M, c));
    case FREE_FOREIGN: return free_foreign(M, c);
    case SWITCH: return switch_to(M, c, arg);
    case TICK: return tick(M, c);
    case REMOTE_WRITE:
    case TRUNCATE: return replace_page(M, c, arg, op == TRUNCATE);
    default: return true;
    }
}

static inline void step(struct machine *M, const int32_t *row) {
    M->now++;
    COUNT(events)++;
    if (M->kswapd_on && M->lane->load_mode) background(M);
    if (!run_op(M, row[0], row[1], row[2], row[3], row[4])) COUNT(events_disabled)++;
}

/* ---- 2. State: memory and initial values ---- */

static uint32_t ring_size(uint32_t n) {
    uint32_t size = 1;
    while (size < n) size *= 2;
    return size;
}

static void *carve(char *arena, size_t *used, size_t bytes) {
    size_t at = *used;
    *used = (at + bytes + 63) / 64 * 64;
    return arena ? arena + at : NULL;
}

/* Lay the arrays of a machine out in one block; with no block, only measure it. */
static size_t place(struct machine *M, const struct shape *S, char *arena) {
    size_t used = 0, P = S->num_processes, V = S->num_vpns, F = S->num_frames, B = S->num_file_pages + S->num_anon, C = S->num_cpus;
    size_t pcp = M->pcp_wrap + 1, i4 = sizeof(int32_t);
#define PLACE(field, count) M->field = carve(arena, &used, (count) * sizeof *M->field)
    PLACE(cpu, C);
    PLACE(process, P);
    PLACE(gen_done, C * P);
    PLACE(vma_flag, (size_t)S->num_vmas);
    PLACE(page, P * V);
    PLACE(frame, F + 2);
    PLACE(rmap, F * S->rmap_slots);
    PLACE(backing, B);
    PLACE(file_page, (size_t)S->num_file_pages);
    PLACE(free, F);
    PLACE(slow, F);
    PLACE(batch_frame, (size_t)S->batch_slots);
    PLACE(batch_deferred, (size_t)S->batch_slots);
    PLACE(foreign, F);
    PLACE(quarantine, (size_t)S->quarantine_slots);
    PLACE(anon_pool, (size_t)S->num_anon);
#undef PLACE
    for (size_t c = 0; c < C; c++) {
        uint32_t *tag = carve(arena, &used, M->num_tags * sizeof *tag);
        struct way *way = carve(arena, &used, M->num_tags * sizeof *way);
        int32_t *ring = carve(arena, &used, pcp * i4), *held = carve(arena, &used, S->gather_slots * i4);
        if (!arena) continue;
        M->cpu[c].tag = tag;
        M->cpu[c].way = way;
        M->cpu[c].pcp = ring;
        M->cpu[c].gather.held = held;
    }
    return used;
}

static void new_machine(struct machine *M, const struct shape *S, const uint16_t *set1, const uint16_t *set2) {
    memset(M, 0, sizeof *M);
    M->shape = S;
    M->num_vpns = S->num_vpns;
    M->num_file_pages = S->num_file_pages;
    M->rmap_slots = S->rmap_slots;
    M->num_l1 = (uint32_t)(S->l1.sets * S->l1.ways);
    M->num_tags = M->num_l1 + (uint32_t)(S->l2.sets * S->l2.ways);
    M->set1 = set1;
    M->set2 = set2;
    M->pcp_wrap = ring_size((uint32_t)S->pcp_slots) - 1;
    size_t bytes = place(M, S, NULL);
    M->arena = aligned_alloc(64, bytes + 64);
    if (!M->arena) die("out of memory: one machine needs %zu bytes", bytes);
}

static void reset_pages(struct machine *M, const struct trace *trace) {
    const struct shape *S = M->shape;
    for (int b = 0; b < S->num_file_pages + S->num_anon; b++) {
        int is_file = b < S->num_file_pages;
        M->backing[b] = (struct backing){ .truth = is_file, .stored = is_file, .home = NONE, .parent = NONE, .origin = NONE, .on_store = (uint8_t)is_file };
    }
    for (int k = 0; k < S->num_anon; k++) M->anon_pool[k] = S->num_file_pages + S->num_anon - 1 - k;
    M->num_pool = S->num_anon;
    for (int k = 0; k < S->num_processes * S->num_vpns; k++) {
        struct page page = { .frame = NONE, .backing = NONE, .promise_backing = NONE, .vma = (int16_t)trace->page_vma[k] };
        if (page.vma != NONE) {
            page.backing = trace->page_backing[k];
            if (page.backing == NONE) {
                if (M->num_pool == 0) die("num_anon=%d: the trace starts with more anonymous pages", S->num_anon);
                page.backing = M->anon_pool[--M->num_pool];
                M->backing[page.backing].truth = M->backing[page.backing].stored = 1;
            }
            page.promise_mapped = 1;
            page.promise_writable = (M->vma[page.vma] & VMA_WRITE) != 0;
            page.promise_backing = page.backing;
        }
        M->page[k] = page;
    }
}

static void reset(struct machine *M, const struct lane *lane, const struct trace *trace) {
    const struct shape *S = M->shape;
    struct machine fresh = { .shape = S, .lane = lane, .num_vpns = M->num_vpns, .num_file_pages = M->num_file_pages,
        .rmap_slots = M->rmap_slots, .num_l1 = M->num_l1, .num_tags = M->num_tags, .set1 = M->set1, .set2 = M->set2,
        .pcp_wrap = M->pcp_wrap, .arena = M->arena, .vma = trace->vmas, .ugen = 1, .unmap_clock = 1 };
    size_t bytes = place(&fresh, S, NULL);
    memset(fresh.arena, 0, bytes);
    place(&fresh, S, fresh.arena);
    *M = fresh;
    for (int m = 0; m < S->num_processes; m++) M->process[m].next_trim = lane->trim_period;
    for (int c = 0; c < S->num_cpus; c++) {
        M->cpu[c].loaded = trace->loaded[c];
        M->cpu[c].lazy = trace->loaded[c] == NONE;
        M->cpu[c].fault_vpn = M->cpu[c].taken = NONE;
        if (trace->loaded[c] != NONE) M->process[trace->loaded[c]].cpumask |= bit(c);
        memset(M->cpu[c].tag, 0xff, M->num_tags * sizeof(uint32_t));
    }
    reset_pages(M, trace);
    memset(M->rmap, 0xff, (size_t)S->num_frames * S->rmap_slots * sizeof(int32_t));
    for (int f = 0; f <= S->num_frames + 1; f++) {
        M->frame[f].content = NOTHING;
        M->frame[f].owner = M->frame[f].homed = NONE;
    }
    for (int end = S->num_frames; end <= S->num_frames + 1; end++) M->frame[end].prev = M->frame[end].next = end;
    for (int f = lane->frames_in_use - 1; f >= lane->fast_frames; f--) M->slow[M->num_slow++] = f;
    for (int f = lane->fast_frames - 1; f >= 0; f--) {
        M->frame[f].on_free = true;
        M->free[M->num_free++] = f;
    }
}

/* ---- Snapshots: the canonical state as one line of JSON ---- */

static void put_list(FILE *out, const char *name, const int32_t *values, int n) {
    if (name) fprintf(out, "\"%s\":", name);
    fputc('[', out);
    for (int k = 0; k < n; k++) fprintf(out, k ? ",%d" : "%d", values[k]);
    fputs(name ? "]," : "]", out);
}

static void put_tlb(FILE *out, const struct machine *M, const char *name, uint32_t first, struct level_shape level) {
    fprintf(out, "\"%s\":[", name);
    for (int c = 0; c < M->shape->num_cpus; c++) {
        fputs(c ? ",[" : "[", out);
        for (int s = 0; s < level.sets; s++) {
            fputs(s ? ",[" : "[", out);
            for (int w = 0; w < level.ways; w++) {
                uint32_t e = first + (uint32_t)(s * level.ways + w), tag = M->cpu[c].tag[e];
                const struct way *way = &M->cpu[c].way[e];
                if (w) fputc(',', out);
                if (tag == EMPTY) fputs("null", out);
                else fprintf(out, "[%d,%d,%d,%d,%d,%d,%d]", (int)tag / M->num_vpns, (int)tag % M->num_vpns, way->frame, way->writable,
                             way->dirty, way->filled, way->used);
            }
            fputc(']', out);
        }
        fputc(']', out);
    }
    fputs("],", out);
}

#define PUT_EACH(name, n, format, ...) do { \
        fprintf(out, "\"%s\":[", name); \
        for (int k = 0; k < (n); k++) { if (k) fputc(',', out); fprintf(out, format, __VA_ARGS__); } \
        fputs("],", out); \
    } while (0)

static void put_cpus(FILE *out, const struct machine *M) {
    int C = M->shape->num_cpus, P = M->shape->num_processes;
    PUT_EACH("loaded", C, "%d", M->cpu[k].loaded);
    PUT_EACH("lazy", C, "%d", M->cpu[k].lazy);
    PUT_EACH("ticks", C, "%d", M->cpu[k].ticks);
    PUT_EACH("covered", C, "%d", M->cpu[k].covered);
    put_tlb(out, M, "tlb1", 0, M->shape->l1);
    put_tlb(out, M, "tlb2", M->num_l1, M->shape->l2);
    fputs("\"gather\":[", out);
    for (int c = 0; c < C; c++) {
        const struct gather *g = &M->cpu[c].gather;
        if (c) fputc(',', out);
        if (!g->kind) {
            fputs("null", out);
            continue;
        }
        fprintf(out, "[%d,%d,%d,%d,%d,%d,", g->kind, g->vs, g->ve, g->cleared, g->cs, g->ce);
        put_list(out, NULL, g->held, g->num_held);
        fputc(']', out);
    }
    fputs("],\"fault\":[", out);
    for (int c = 0; c < C; c++) {
        const struct cpu *cpu = &M->cpu[c];
        if (c) fputc(',', out);
        if (cpu->fault_vpn == NONE) fputs("null", out);
        else fprintf(out, "[%d,%d]", cpu->fault_vpn, cpu->fault_pays);
    }
    fputs("],\"taken\":[", out);
    for (int c = 0; c < C; c++) {
        const struct debt *debt = &M->cpu[c].taken_debt;
        if (c) fputc(',', out);
        if (M->cpu[c].taken == NONE) fputs("null", out);
        else fprintf(out, "[%d,%llu,%d,%d,%d,%d]", M->cpu[c].taken, (unsigned long long)debt->owed, debt->tag, debt->owner, debt->since,
                     debt->tag_clock);
    }
    fputs("],\"pcp\":[", out);
    for (int c = 0; c < C; c++) {
        const struct cpu *cpu = &M->cpu[c];
        fputs(c ? ",[" : "[", out);
        for (uint32_t k = 0; k < cpu->pcp_count; k++) fprintf(out, k ? ",%d" : "%d", cpu->pcp[(cpu->pcp_head + k) & M->pcp_wrap]);
        fputc(']', out);
    }
    fputs("],\"gen_done\":[", out);
    for (int c = 0; c < C; c++) {
        if (c) fputc(',', out);
        put_list(out, NULL, M->gen_done + c * P, P);
    }
    fputs("],", out);
}

static void put_memory(FILE *out, const struct machine *M) {
    const struct shape *S = M->shape;
    int V = S->num_vpns;
    fputs("\"pages\":[", out);
    for (int m = 0; m < S->num_processes; m++) {
        fputs(m ? ",[" : "[", out);
        for (int v = 0; v < V; v++) {
            const struct page *g = &M->page[m * V + v];
            fprintf(out, "%s[%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d]", v ? "," : "", g->present, g->writable, g->accessed, g->dirty,
                    g->marker, g->frame, g->vma, g->backing, g->promise_mapped, g->promise_writable, g->promise_backing, g->epoch,
                    g->changed);
        }
        fputc(']', out);
    }
    fputs("],\"frames\":[", out);
    for (int f = 0; f < S->num_frames; f++) {
        const struct frame *g = &M->frame[f];
        fprintf(out, "%s[%d,%d,%d,%d,", f ? "," : "", g->state, g->handed, g->content, g->version);
        put_list(out, NULL, M->rmap + (size_t)f * S->rmap_slots, S->rmap_slots);
        fprintf(out, ",%d,%llu,%d,%d,%d,%d]", g->refs, (unsigned long long)g->owed, g->tag, g->owner, g->since, g->tag_clock);
    }
    fputs("],", out);
    PUT_EACH("backings", S->num_file_pages + S->num_anon, "[%d,%d,%d,%d,%d,%d,%d,%d,%d]", M->backing[k].truth, M->backing[k].stored,
             M->backing[k].on_store, M->backing[k].home, M->backing[k].harvested, M->backing[k].parent,
             M->backing[k].origin, M->backing[k].shared, M->backing[k].sharers);
}

static void put_machine(FILE *out, const struct machine *M) {
    const struct shape *S = M->shape;
    int P = S->num_processes;
    PUT_EACH("cpumask", P, "%llu", (unsigned long long)M->process[k].cpumask);
    PUT_EACH("sweep", P, "%llu", (unsigned long long)M->process[k].sweep);
    PUT_EACH("tlb_gen", P, "%d", M->process[k].tlb_gen);
    PUT_EACH("pending", P, "%d", M->process[k].pending);
    PUT_EACH("flushed", P, "%d", M->process[k].flushed);
    PUT_EACH("gathers", P, "%d", M->process[k].gathers);
    PUT_EACH("excl", P, "%d", M->process[k].excl);
    PUT_EACH("va_debt", P, "%d", M->process[k].va_debt);
    PUT_EACH("mm_owed", P, "%llu", (unsigned long long)M->process[k].owed);
    PUT_EACH("mm_clock", P, "%d", M->process[k].clock);
    PUT_EACH("file_owed", S->num_file_pages, "%llu", (unsigned long long)M->file_page[k].owed);
    PUT_EACH("file_clock", S->num_file_pages, "%d", M->file_page[k].clock);
    PUT_EACH("next_trim", P, "%d", M->process[k].next_trim);
    PUT_EACH("free", M->num_free, "%d", M->free[M->num_free - 1 - k]);
    PUT_EACH("slow", M->num_slow, "%d", M->slow[M->num_slow - 1 - k]);
    for (int end = S->num_frames; end <= S->num_frames + 1; end++) {
        int separator = 0;
        fprintf(out, "\"%s\":[", end == S->num_frames ? "lru" : "lru_slow");
        for (int f = M->frame[end].next; f != end; f = M->frame[f].next) fprintf(out, separator++ ? ",%d" : "%d", f);
        fputs("],", out);
    }
    PUT_EACH("batch", M->num_batch, "[%d,%d]", M->batch_frame[k], M->batch_deferred[k]);
    fprintf(out, "\"U\":%llu,\"D\":%llu,\"G\":%llu,\"need_flush\":%d,", (unsigned long long)M->batch_mask,
            (unsigned long long)M->deferred_mask, (unsigned long long)M->debt_mask, M->need_flush);
    put_list(out, "foreign", M->foreign, M->num_foreign);
    fputs("\"quarantine\":[", out);
    for (int k = 0; k < M->num_quarantine; k++) {
        const struct quarantined *q = &M->quarantine[(M->quarantine_head + k) % S->quarantine_slots];
        fprintf(out, "%s[%d,%d,%d,%d]", k ? "," : "", q->frame, q->kind, q->stamp, q->process);
    }
    fputs("],", out);
    put_list(out, "anon_pool", M->anon_pool, M->num_pool);
    put_list(out, "vma_flag", M->vma_flag, S->num_vmas);
    fprintf(out, "\"kswapd_on\":%d,\"ugen\":%d,\"ugen_done\":%d,\"unmap_clock\":%d", M->kswapd_on, M->ugen, M->ugen_done, M->unmap_clock);
}

static void put_snapshot(FILE *out, const struct machine *M) {
    const struct sample *count = &M->count;
    fputs("{\"snapshot\":{", out);
    put_cpus(out, M);
    put_memory(out, M);
    put_machine(out, M);
    fputs("},\"counters\":{", out);
    for (int k = 0; k < NUM_SCALARS; k++) fprintf(out, "\"%s\":%lld,", scalar_names[k], (long long)count->scalar[k]);
    for (int h = 0; h < NUM_HISTOGRAMS; h++) PUT_EACH(histogram_names[h], NUM_BUCKETS, "%lld", (long long)count->histogram[h][k]);
    fputs("\"received\":[", out);
    for (int c = 0; c < M->shape->num_cpus; c++) fprintf(out, c ? ",%lld" : "%lld", (long long)count->received[c]);
    fputs("]},\"violations\":{", out);
    PUT_EACH("loads", NUM_CLASSES, "%lld", (long long)count->violations[k][0]);
    PUT_EACH("stores", NUM_CLASSES, "%lld", (long long)count->violations[k][1]);
    fputs("\"first\":[", out);
    for (int k = 0; k < NUM_CLASSES; k++)
        fprintf(out, "%s[%lld,%lld,%lld,%lld]", k ? "," : "", (long long)M->first[k][0], (long long)M->first[k][1],
                (long long)M->first[k][2], (long long)M->first[k][3]);
    fputs("]}}\n", out);
}

/* ---- Input ---- */

struct input {
    struct shape shape;
    const struct lane *lane;
    const int32_t *trace_index, *sample_points;
    struct trace *trace;
    uint16_t *set1, *set2;
};

static const int32_t *take(const int32_t **at, const int32_t *end, size_t count) {
    const int32_t *here = *at;
    if ((size_t)(end - here) < count) die("the input file ends early");
    *at += count;
    return here;
}

static uint16_t *index_sets(struct level_shape level, const char *name, int num_vpns, int first) {
    uint16_t *set = malloc((size_t)num_vpns * sizeof *set);
    if (level.replacement != LRU) die("%s.replacement: this program knows only lru", name);
    if (level.sets < 1 || level.ways < 1 || first + level.sets * level.ways > UINT16_MAX + 1)
        die("%s: %d sets x %d ways do not fit", name, level.sets, level.ways);
    if (!set) die("out of memory");
    for (int v = 0; v < num_vpns; v++)
        set[v] = (uint16_t)(first + (level.index ? (v ^ (v / level.sets)) : v) % level.sets * level.ways);
    return set;
}

static void check_lane(const struct shape *S, const struct lane *lane, int index) {
    struct { const char *name; int32_t value, low, high; } limits[] = {
        { "frames_in_use", lane->frames_in_use, 0, S->num_frames }, { "pcp_batch", lane->pcp_batch, 1, S->pcp_slots },
        { "pcp_high", lane->pcp_high, 0, S->pcp_slots - 1 }, { "reclaim_batch", lane->reclaim_batch, 1, S->batch_slots },
        { "kswapd_cpu", lane->kswapd_cpu, 0, S->num_cpus - 1 }, { "fast_frames", lane->fast_frames, 0, lane->frames_in_use },
        { "policy.quarantine_slots", lane->quarantine_slots, 0, S->quarantine_slots }, { "policy.gen_bits", lane->gen_bits, 2, 30 },
    };
    for (size_t k = 0; k < sizeof limits / sizeof *limits; k++)
        if (limits[k].value < limits[k].low || limits[k].value > limits[k].high)
            die("lane %d: %s=%d: allowed are %d to %d", index, limits[k].name, limits[k].value, limits[k].low, limits[k].high);
}

static bool is_within(int32_t value, int32_t low, int32_t end) { return value >= low && value < end; }

static bool is_well_formed(const struct shape *S, const int32_t *row) {
    int op = row[1], v = row[2], arg = row[3], vma = row[4] % FIRST_PAGE;
    if (!is_within(row[0], 0, S->num_cpus) || !is_within(op, 0, NUM_OPS)) return false;
    bool has_page = is_within(v, 0, S->num_vpns);
    switch (op) {
    case LOAD:
    case STORE: return has_page && row[4] >= 0;
    case MUNMAP:
    case FAULT_INSTALL:
    case FAULT_FINISH:
    case DONTNEED:
    case MADVISE_FREE:
    case EXIT: return has_page;
    case MMAP: return has_page && is_within(arg, NONE, S->num_file_pages) && row[4] >= 0 && vma < S->num_vmas;
    case MPROTECT: return has_page && is_within(arg, 0, S->num_vmas);
    case MREMAP: return has_page && is_within(arg, 0, S->num_vpns);
    case FORK: return has_page && is_within(arg, 0, S->num_processes) && is_within(row[4], 0, S->num_vmas);
    case FILE_WRITE:
    case REMOTE_WRITE:
    case TRUNCATE: return is_within(arg, 0, S->num_file_pages);
    case MIGRATE: return has_page && is_within(arg, 0, S->num_processes);
    case RECLAIM: return arg == NONE || (has_page && is_within(arg, 0, S->num_processes));
    case SWITCH: return is_within(arg, NONE, S->num_processes);
    default: return true;
    }
}

static void check_trace(const struct shape *S, const struct trace *trace, int index) {
    for (int c = 0; c < S->num_cpus; c++)
        if (!is_within(trace->loaded[c], NONE, S->num_processes)) die("trace %d: loaded[%d]=%d is no process", index, c, trace->loaded[c]);
    for (int k = 0; k < S->num_processes * S->num_vpns; k++) {
        if (!is_within(trace->page_vma[k], NONE, S->num_vmas)) die("trace %d: page_vma=%d is no VMA", index, trace->page_vma[k]);
        if (trace->page_vma[k] != NONE && !is_within(trace->page_backing[k], NONE, S->num_file_pages))
            die("trace %d: page_backing=%d is no file page", index, trace->page_backing[k]);
    }
    for (int e = 0; e < S->num_events; e++) {
        const int32_t *row = trace->events + (size_t)e * 5;
        if (!is_well_formed(S, row))
            die("trace %d: event %d (%d %d %d %d %d) names something outside the machine", index, e + 1, row[0], row[1], row[2], row[3],
                row[4]);
    }
}

static void read_input(const char *path, struct input *input) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die("cannot read %s", path);
    long bytes = ftell(file);
    rewind(file);
    int32_t *words = malloc((size_t)bytes + 4);
    if (!words || fread(words, 1, (size_t)bytes, file) != (size_t)bytes) die("cannot read %s", path);
    fclose(file);
    const int32_t *at = words, *end = words + bytes / 4;
    const int32_t *head = take(&at, end, 2);
    if (head[0] != MAGIC || head[1] != FORMAT) die("%s is no input file of this program", path);
    struct shape *S = &input->shape;
    memcpy(S, take(&at, end, sizeof *S / 4), sizeof *S);
    if (!is_within(S->num_cpus, 1, MAX_CPUS + 1)) die("num_cpus=%d: allowed are 1 to %d", S->num_cpus, MAX_CPUS);
    if (S->num_vmas > INT16_MAX) die("num_vmas=%d: allowed are up to %d", S->num_vmas, INT16_MAX);
    if (!is_within(S->rmap_slots, 1, MAX_CPUS * 4 + 1)) die("rmap_slots=%d: allowed are 1 to %d", S->rmap_slots, MAX_CPUS * 4);
    input->set1 = index_sets(S->l1, "l1", S->num_vpns, 0);
    input->set2 = index_sets(S->l2, "l2", S->num_vpns, S->l1.sets * S->l1.ways);
    input->lane = (const struct lane *)take(&at, end, (size_t)S->num_lanes * sizeof(struct lane) / 4);
    input->trace_index = take(&at, end, (size_t)S->num_lanes);
    input->sample_points = take(&at, end, (size_t)S->num_samples);
    input->trace = malloc((size_t)S->num_traces * sizeof *input->trace);
    if (!input->trace) die("out of memory");
    size_t pages = (size_t)S->num_processes * S->num_vpns;
    for (int t = 0; t < S->num_traces; t++) {
        struct trace *trace = &input->trace[t];
        trace->vmas = take(&at, end, (size_t)S->num_vmas);
        trace->page_vma = take(&at, end, pages);
        trace->page_backing = take(&at, end, pages);
        trace->loaded = take(&at, end, (size_t)S->num_cpus);
        trace->events = take(&at, end, (size_t)S->num_events * 5);
        check_trace(S, trace, t);
    }
    for (int k = 0; k < S->num_lanes; k++) {
        check_lane(S, &input->lane[k], k);
        if (!is_within(input->trace_index[k], 0, S->num_traces)) die("lane %d: trace_index=%d", k, input->trace_index[k]);
    }
}

/* ---- Running and output ---- */

static size_t sample_words(const struct shape *S) {
    return NUM_SCALARS + NUM_HISTOGRAMS * NUM_BUCKETS + (size_t)S->num_cpus + NUM_CLASSES * 2;
}

static void put_sample(const struct machine *M, int64_t *out) {
    const struct sample *count = &M->count;
    size_t cpus = (size_t)M->shape->num_cpus, histograms = NUM_HISTOGRAMS * NUM_BUCKETS;
    memcpy(out, count->scalar, sizeof count->scalar);
    memcpy(out + NUM_SCALARS, count->histogram, sizeof count->histogram);
    memcpy(out + NUM_SCALARS + histograms, count->received, cpus * sizeof *out);
    memcpy(out + NUM_SCALARS + histograms + cpus, count->violations, sizeof count->violations);
}

static void run_lane(struct machine *M, const struct input *input, int lane, int64_t *samples, int64_t *tail) {
    const struct shape *S = M->shape;
    const struct trace *trace = &input->trace[input->trace_index[lane]];
    size_t words = sample_words(S);
    int event = 0;
    reset(M, &input->lane[lane], trace);
    for (int s = 0; s < S->num_samples; s++) {
        for (; event < input->sample_points[s] && !M->fault; event++) step(M, trace->events + (size_t)event * 5);
        put_sample(M, samples + (size_t)s * words);
    }
    memcpy(tail, M->first, sizeof M->first);
    tail[NUM_CLASSES * 4] = M->fault;
    tail[NUM_CLASSES * 4 + 1] = M->fault ? M->now : 0;
}

static void write_or_die(const void *data, size_t size, size_t count, FILE *out) {
    if (fwrite(data, size, count, out) != count) die("cannot write the output file");
}

static void run_lanes(const struct input *input, int threads, FILE *out) {
    const struct shape *S = &input->shape;
    size_t words = sample_words(S) * (size_t)S->num_samples, tail_words = NUM_CLASSES * 4 + 2;
    int64_t *samples = malloc((size_t)S->num_lanes * words * 8 + 8), *tails = malloc((size_t)S->num_lanes * tail_words * 8 + 8);
    if (!samples || !tails) die("out of memory");
    double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    {
        struct machine machine;
        new_machine(&machine, S, input->set1, input->set2);
#pragma omp for schedule(dynamic, 1)
        for (int k = 0; k < S->num_lanes; k++) run_lane(&machine, input, k, samples + (size_t)k * words, tails + (size_t)k * tail_words);
        free(machine.arena);
    }
    double seconds = omp_get_wtime() - start;
    char names[4096] = "";
    for (int k = 0; k < NUM_SCALARS; k++) strcat(strcat(names, k ? " " : ""), scalar_names[k]);
    int32_t head[8] = { MAGIC, S->num_lanes, S->num_samples, S->num_cpus, NUM_SCALARS, threads, (int32_t)strlen(names), 0 };
    write_or_die(head, sizeof head, 1, out);
    write_or_die(&seconds, sizeof seconds, 1, out);
    write_or_die(names, 1, strlen(names), out);
    write_or_die(samples, words * 8, (size_t)S->num_lanes, out);
    write_or_die(tails, tail_words * 8, (size_t)S->num_lanes, out);
    free(samples);
    free(tails);
    printf("seconds %.6f threads %d lanes %d events %d\n", seconds, threads, S->num_lanes, S->num_events);
}

static void run_snapshots(const struct input *input, FILE *out) {
    struct machine machine;
    if (input->shape.num_lanes != 1) die("--snapshots needs one lane, not %d", input->shape.num_lanes);
    const struct trace *trace = &input->trace[input->trace_index[0]];
    new_machine(&machine, &input->shape, input->set1, input->set2);
    reset(&machine, &input->lane[0], trace);
    for (int e = 0; e < input->shape.num_events; e++) {
        step(&machine, trace->events + (size_t)e * 5);
        if (machine.fault) {
            fprintf(out, "{\"fault\":%d,\"event\":%d}\n", machine.fault, machine.now);
            break;
        }
        put_snapshot(out, &machine);
    }
    free(machine.arena);
}

int main(int argc, char **argv) {
    static struct input input;
    int threads = 1;
    bool snapshots = false;
    if (argc < 3) die("usage: reference INPUT OUTPUT [--threads N] [--snapshots]");
    for (int k = 3; k < argc; k++) {
        if (!strcmp(argv[k], "--snapshots")) snapshots = true;
        else if (!strcmp(argv[k], "--threads") && k + 1 < argc && atoi(argv[k + 1]) > 0) threads = atoi(argv[++k]);
        else die("%s: not understood; options are --threads N (N >= 1) and --snapshots", argv[k]);
    }
    read_input(argv[1], &input);
    FILE *out = fopen(argv[2], "wb");
    if (!out) die("cannot write %s", argv[2]);
    if (snapshots) run_snapshots(&input, out);
    else run_lanes(&input, threads, out);
    if (fclose(out)) die("cannot write %s", argv[2]);
    return 0;
}
