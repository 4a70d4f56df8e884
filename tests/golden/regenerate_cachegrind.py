"""Write ``cachegrind.json``: misses that valgrind's cachegrind counts for the page accesses of the shipped recordings.

Run from the root of the source tree, with gcc and valgrind on x86-64: ``python -m tests.golden.regenerate_cachegrind``.
cachegrind simulates two levels of caches with LRU replacement; the second is touched by misses of the first only (valgrind manual,
chapter 5). With lines of 4,096 bytes it is a TLB.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from tests.golden.page_stream import GEOMETRIES, RECORDINGS, PageStream, page_stream

HERE = Path(__file__).parent
PAGE = 4096


def build(folder: Path) -> Path:
    """Compile the program that touches the pages."""
    program = folder / "page_stream"
    subprocess.run(["gcc", "-O2", "-g", "-o", program, HERE / "page_stream.c"], check=True)
    return program


def count_misses(program: Path, stream: PageStream, geometry: tuple[tuple[int, int], tuple[int, int]]) -> dict[str, int]:
    """Run the program under cachegrind and return accesses and misses of its load and its store."""
    folder = program.parent
    (folder / "stream").write_bytes(stream.packed().tobytes())
    first, last = (f"{2 * sets * ways * PAGE},{ways},{PAGE}" for sets, ways in geometry)
    command = [
        "valgrind", "--tool=cachegrind", "--cache-sim=yes", f"--I1={64 * 16 * PAGE},16,{PAGE}", f"--D1={first}", f"--LL={last}",
        f"--cachegrind-out-file={folder / 'counts'}", program, folder / "stream", str(len(stream.vpn)), str(stream.num_vpns),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    load, store = (_counts_of_line(folder / "counts", marker) for marker in ("LOAD", "STORE"))
    counts = {
        "loads": load["Dr"], "stores": store["Dw"], "first_level_misses": load["D1mr"] + store["D1mw"],
        "load_misses": load["DLmr"], "store_misses": store["DLmw"],
    }  # fmt: skip
    if (counts["loads"], counts["stores"]) != (int((~stream.is_store).sum()), int(stream.is_store.sum())):
        raise RuntimeError(f"the compiler moved accesses to other lines: {counts}")
    return counts


def _counts_of_line(output: Path, marker: str) -> dict[str, int]:
    """Sum the counts of the line of ``page_stream.c`` that carries the comment ``marker``."""
    source = (HERE / "page_stream.c").read_text().splitlines()
    wanted = next(number for number, line in enumerate(source, start=1) if f"/* {marker} */" in line)
    events: list[str] = []
    totals: dict[str, int] = {}
    is_ours = False
    for line in output.read_text().splitlines():
        if line.startswith("events:"):
            events = line.split()[1:]
        elif line.startswith(("fl=", "fi=", "fe=")):
            is_ours = line.endswith("page_stream.c")
        elif is_ours and line.split()[0] == str(wanted):
            for name, count in zip(events, line.split()[1:], strict=True):
                totals[name] = totals.get(name, 0) + int(count)
    return totals


def main() -> None:
    """Write the file."""
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for recording in RECORDINGS:
            stream = page_stream(recording)
            counts = {name: count_misses(program, stream, geometry) for name, geometry in GEOMETRIES.items()}
            golden[recording] = {"digest": stream.digest, **counts}
    (HERE / "cachegrind.json").write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main()
