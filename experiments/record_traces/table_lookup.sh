#!/bin/sh
# Record look-ups in a table of 12.5 MB that is mapped read-only: binary search among 8,000 keys, then the record is read.
# Requests come in batches of 256; the batch's two pages of the request file are mapped for the batch, and so is memory for its
# results. Low keys (the newest records) are asked for more often: the rank is the square of a uniform number.
# Usage: sh table_lookup.sh OUTPUT.nc        needs: cc, valgrind 3.19, a Python with lufjax
set -eu
command -v cc > /dev/null
command -v valgrind > /dev/null
output=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/lookup.c" <<'PROGRAM'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RECORDS = 8000, BATCH = 256, BATCHES = 110, LEAST = 32 };
struct request { uint64_t key, client, time, flags; };
struct result { uint64_t key, sum, head[6]; };

static uint64_t seed = 1;
static uint64_t draw(void) { return (seed = seed * 6364136223846793005u + 1442695040888963407u) >> 32; }

static void make(const char *table, const char *requests) {
    static uint64_t keys[RECORDS];
    static uint32_t words[RECORDS], place[RECORDS];
    uint32_t next = 1 + RECORDS + RECORDS / 2;
    for (int i = 0; i < RECORDS; i++) {
        keys[i] = (i ? keys[i - 1] : 0) + 1 + draw() % 1000;
        words[i] = LEAST + draw() % 321;
        place[i] = next;
        next += 1 + words[i];
    }
    FILE *file = fopen(table, "w");
    uint64_t number = RECORDS;
    fwrite(&number, sizeof number, 1, file);
    fwrite(keys, sizeof keys, 1, file);
    fwrite(place, sizeof place, 1, file);
    for (int i = 0; i < RECORDS; i++)
        for (uint64_t j = 0, word = words[i]; j <= words[i]; j++, word = draw()) fwrite(&word, sizeof word, 1, file);
    fclose(file);
    file = fopen(requests, "w");
    for (int i = 0; i < BATCH * BATCHES; i++) {
        uint64_t uniform = draw();
        struct request one = {keys[((uniform * uniform) >> 32) * RECORDS >> 32], draw() % 100, i, 0};
        fwrite(&one, sizeof one, 1, file);
    }
    fclose(file);
}

static void answer(const uint64_t *table, const struct request *request, struct result *result) {
    const uint64_t *keys = table + 1;
    const uint32_t *place = (const uint32_t *)(keys + table[0]);
    for (int i = 0; i < BATCH; i++) {
        uint64_t low = 0, high = table[0];
        while (high - low > 1) {
            uint64_t middle = (low + high) / 2;
            if (keys[middle] <= request[i].key) low = middle; else high = middle;
        }
        const uint64_t *record = table + place[low];
        uint64_t sum = 0;
        for (uint64_t j = 1; j <= record[0]; j++) sum ^= record[j] * j;
        result[i].key = request[i].key;
        result[i].sum = sum;
        for (int j = 0; j < 6; j++) result[i].head[j] = record[1 + j];
    }
}

int main(int count, char **names) {
    if (count == 4 && !strcmp(names[1], "make")) { make(names[2], names[3]); return 0; }
    struct stat about;
    int table_file = open(names[1], O_RDONLY), request_file = open(names[2], O_RDONLY);
    fstat(table_file, &about);
    const uint64_t *table = mmap(0, about.st_size, PROT_READ, MAP_SHARED, table_file, 0);
    uint64_t sum = 0;
    for (int batch = 0; batch < BATCHES; batch++) {
        size_t asked = BATCH * sizeof(struct request), found = BATCH * sizeof(struct result);
        struct request *request = mmap(0, asked, PROT_READ, MAP_SHARED, request_file, batch * asked);
        struct result *result = mmap(0, found, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        answer(table, request, result);
        for (int i = 0; i < BATCH; i++) sum += result[i].sum;
        munmap(result, found);
        munmap(request, asked);
    }
    printf("%llu\n", (unsigned long long)sum);
    return 0;
}
PROGRAM

cc -O2 -o "$work/lookup" "$work/lookup.c"
"$work/lookup" make "$work/table" "$work/requests"
mkfifo "$work/trace.txt"
LC_ALL=C valgrind --tool=lackey --trace-mem=yes --trace-syscalls=yes --trace-sched=yes --log-file="$work/trace.txt" \
    "$work/lookup" "$work/table" "$work/requests" &

python - "$work/trace.txt" "$output" <<'PY'
import sys
from lufjax.workloads.lackey import import_lackey
print(import_lackey(sys.argv[1], sys.argv[2], skip_runs=20_000, max_runs=500_000, command="lookup table requests"))
PY
wait
