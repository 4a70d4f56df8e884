#!/bin/sh
# Record four Python threads that build and sort word lists; the interpreter lock hands over from thread to thread.
# Instructions before the threads start are left out (skip_runs); how many there are depends on the Python build.
# Usage: sh python_threads.sh OUTPUT.nc      needs: /usr/bin/python3 (3.11), valgrind 3.19, a Python with lufjax
set -eu
output=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/words.py" <<'PROGRAM'
import mmap
import sys
import threading

sys.setswitchinterval(0.0005)


def count(path, turn):
    for lap in range(40):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text:
            part = text[turn * 9000 + lap * 200 : turn * 9000 + lap * 200 + 150] + text[::4096]
        words = {}
        for word in part.split():
            words[word] = words.get(word, 0) + 1
        sorted(words.items(), key=lambda pair: (-pair[1], pair[0]))


threads = [threading.Thread(target=count, args=(sys.argv[1], turn)) for turn in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
PROGRAM

awk 'BEGIN { for (i = 1; i < 9000; i++) print "w" (i * 7919) % 997 }' > "$work/text.txt"

LC_ALL=C valgrind --fair-sched=yes --tool=lackey --trace-mem=yes --trace-syscalls=yes --trace-sched=yes --log-file="$work/trace.txt" \
    /usr/bin/python3 -I -S "$work/words.py" "$work/text.txt"

python - "$work/trace.txt" "$output" <<'PY'
import sys
from lufjax.workloads.lackey import import_lackey
print(import_lackey(sys.argv[1], sys.argv[2], skip_runs=6_100_000, max_runs=500_000, command="python3 -I -S words.py text.txt"))
PY
