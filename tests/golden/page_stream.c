/* Touches one byte of a page for each entry of a stream, so that a cache simulator with lines of 4,096 bytes counts TLB misses.
 *
 * Stream: uint32 little endian, vpn * 2 + is_store. The pages of the stream are the even pages of an aligned region and the stream
 * itself lies in odd pages, so in a cache with twice the sets of the TLB the two never share a set. The loop uses registers only, and
 * its one load and one store of the stream's pages have lines of their own.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { PAGE = 4096, ENTRIES = PAGE / sizeof(uint32_t), ALIGNMENT = 1 << 24 };

__attribute__((noinline, aligned(PAGE))) static void touch(char *pages, const char *chunks, size_t num_entries)
{
    for (size_t i = 0; i < num_entries; i++) {
        uint32_t entry = *(const volatile uint32_t *)(chunks + i / ENTRIES * 2 * PAGE + i % ENTRIES * sizeof(uint32_t));
        volatile char *byte = pages + (size_t)(entry >> 1) * 2 * PAGE;
        if (entry & 1) {
            *byte = 1; /* STORE */
        } else {
            (void)*byte; /* LOAD */
        }
    }
}

int main(int argc, char **argv)
{
    size_t num_entries = argc == 4 ? strtoull(argv[2], NULL, 10) : 0, num_vpns = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
    size_t num_chunks = (num_entries + ENTRIES - 1) / ENTRIES;
    FILE *file = argc == 4 ? fopen(argv[1], "rb") : NULL;
    char *pages = aligned_alloc(ALIGNMENT, (num_vpns * 2 * PAGE / ALIGNMENT + 1) * ALIGNMENT);
    char *chunks = aligned_alloc(ALIGNMENT, (num_chunks * 2 * PAGE / ALIGNMENT + 1) * ALIGNMENT);
    if (!file || !pages || !chunks) {
        fprintf(stderr, "usage: page_stream STREAM NUM_ENTRIES NUM_VPNS\n");
        return 2;
    }
    chunks += PAGE;
    for (size_t chunk = 0, left = num_entries; left > 0; chunk++) {
        size_t count = left < ENTRIES ? left : ENTRIES;
        if (fread(chunks + chunk * 2 * PAGE, sizeof(uint32_t), count, file) != count) {
            fprintf(stderr, "stream is shorter than %zu entries\n", num_entries);
            return 2;
        }
        left -= count;
    }
    touch(pages, chunks, num_entries);
    return 0;
}
