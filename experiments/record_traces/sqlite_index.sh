#!/bin/sh
# Record sqlite3 building an index and querying a small database that it maps (PRAGMA mmap_size).
# The start of the program (dynamic linking, tables of SQLite) is left out (skip_runs).
# Usage: sh sqlite_index.sh OUTPUT.nc        needs: sqlite3, valgrind 3.19, a Python with lufjax
set -eu
output=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sqlite3 "$work/shop.db" "
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000)
INSERT INTO item SELECT i, printf('%08x item of the catalogue, with a description that makes the row as long as rows of real tables are: %0100d', (i * 2654435761) % 4294967296, i), (i * 40503) % 9973 FROM n;"

cat > "$work/session.sql" <<'SQL'
PRAGMA mmap_size=16777216;
PRAGMA cache_size=64;
SELECT sum(price) FROM item WHERE id % 5 = 0;
CREATE INDEX item_price ON item(price) WHERE id % 8 = 0;
SELECT count(*) FROM item INDEXED BY item_price WHERE id % 8 = 0 AND price BETWEEN 100 AND 2000 AND name > '4';
SELECT max(name) FROM item WHERE price = 77;
SQL

LC_ALL=C valgrind --tool=lackey --trace-mem=yes --trace-syscalls=yes --trace-sched=yes --log-file="$work/trace.txt" \
    sqlite3 "$work/shop.db" ".read $work/session.sql"

python - "$work/trace.txt" "$output" <<'PY'
import sys
from lufjax.workloads.lackey import import_lackey
print(import_lackey(sys.argv[1], sys.argv[2], skip_runs=340_000, max_runs=700_000, command="sqlite3 shop.db '.read session.sql'"))
PY
