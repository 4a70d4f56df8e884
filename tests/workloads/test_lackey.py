"""Import of lackey recordings: what a tiny one becomes, what is refused, and that memory does not grow with the text."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray

from lufjax.events import Op, VmaFlag
from lufjax.workloads import build
from lufjax.workloads.lackey import import_lackey
from lufjax.workloads.recording import read_recording
from lufjax.workloads.validate import check_trace
from tests.workloads.lackey_samples import HEADER, TINY


def _import(tmp_path: Path, text: str, **options):
    (tmp_path / "sample.txt").write_text(text)
    counts = import_lackey(tmp_path / "sample.txt", tmp_path / "sample.nc", **options)
    return counts, read_recording(tmp_path / "sample.nc")


def test_a_tiny_recording(tmp_path: Path):
    counts, recording = _import(tmp_path, TINY)
    with xarray.open_dataset(tmp_path / "sample.nc", engine="h5netcdf", decode_cf=False) as dataset:
        page = dataset["page"].values
    accesses = [(thread, store, int(page[vpn]), repeat) for thread, store, vpn, repeat in recording.rows.tolist()]
    assert accesses == [
        (0, 1, 0x1FFEFFF, 1),
        (0, 0, 0x4002, 2),
        (0, 0, 0x4835, 1),
        (0, 0, 0x4836, 1),
        (0, 0, 0x1FFEFFF, 1),
        (0, 1, 0x1FFEFFF, 2),
        (0, 1, 0x5000, 1),
        (0, 1, 0x5001, 1),
        (1, 0, 0x5001, 1),
        (1, 0, 0x5000, 1),
    ]
    calls = recording.calls
    ops = [Op.MMAP, Op.MMAP, Op.MPROTECT, Op.MADVISE_DONTNEED, Op.MUNMAP]
    assert calls["op"].tolist() == ops
    assert calls["row"].tolist() == [2, 6, 9, 9, 10]
    assert calls["thread"].tolist() == [0, 0, 1, 1, 1]
    assert page[calls["vpn"]].tolist() == [0x4835, 0x5000, 0x5001, 0x5000, 0x4835]
    assert calls["num_pages"].tolist() == [2, 2, 1, 1, 2]
    assert recording.vmas[calls["vma"][0]] == VmaFlag.READ | VmaFlag.SHARED
    assert recording.vmas[calls["value"][2]] == VmaFlag.READ | VmaFlag.MAYWRITE | VmaFlag.ANON
    assert calls["free_tables"].tolist() == [0, 0, 0, 0, 1]
    assert {key: counts[key] for key in ("accesses", "num_threads", "touched_pages", "unmapped_runs", "mappers")} == {
        "accesses": 10, "num_threads": 2, "touched_pages": 6, "unmapped_runs": 0, "mappers": 1
    }  # fmt: skip


def test_dense_vpns_keep_low_bits_and_neighbours(tmp_path: Path):
    _import(tmp_path, TINY, index_bits=5)
    with xarray.open_dataset(tmp_path / "sample.nc", engine="h5netcdf", decode_cf=False) as dataset:
        page = dataset["page"].values
    kept = np.flatnonzero(page >= 0)
    assert ((page[kept] - kept) % 32 == 0).all()
    vpn_of = {int(page[vpn]): int(vpn) for vpn in kept}
    assert vpn_of[0x4836] == vpn_of[0x4835] + 1
    assert vpn_of[0x5001] == vpn_of[0x5000] + 1


@pytest.mark.parametrize("mode", ["threads", "rate"])
def test_a_recording_is_replayed_round_and_round(tmp_path: Path, mode: str):
    _import(tmp_path, TINY)
    for num_cpus in (1, 2, 5):
        options = {"path": str(tmp_path / "sample.nc"), "mode": mode, "tick_period": 0}
        trace = build("replay", options, num_cpus=num_cpus, seed=0, num_events=900)
        check_trace(trace)
        assert (trace.events[:, 1] == Op.MMAP).sum() > 20


def test_the_text_may_be_cut_anywhere(tmp_path: Path):
    whole, _ = _import(tmp_path, TINY)
    expected = (tmp_path / "sample.nc").read_bytes()
    for block_bytes in (101, 333):
        assert _import(tmp_path, TINY, block_bytes=block_bytes)[0] == whole
        assert (tmp_path / "sample.nc").read_bytes() == expected
    (tmp_path / "sample.txt.gz").write_bytes(gzip.compress(TINY.encode()))
    assert import_lackey(tmp_path / "sample.txt.gz", tmp_path / "zipped.nc") == whole


def test_fetches_and_windows(tmp_path: Path):
    assert _import(tmp_path, TINY, with_fetches=True)[0]["accesses"] == 11
    counts, recording = _import(tmp_path, TINY, skip_runs=4, max_runs=3)
    assert counts["num_rows"] == 4
    assert recording.calls["op"].tolist() == [Op.MMAP]
    check_trace(build("replay", {"path": str(tmp_path / "sample.nc")}, num_cpus=2, seed=0, num_events=300))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (" L 0483zffc,8", "' L 0483zffc,8'"),
        (" L 04835ffc", "' L 04835ffc'"),
        (" S ,8", "' S ,8'"),
        (" M 04835ffc,0", "' M 04835ffc,0'"),
        (" L 04835ffc,x", "' L 04835ffc,x'"),
        (" L 11112222333344445,8", "' L 11112222333344445,8'"),
        ("hello", "'hello'"),
        (" X 04835ffc,8", "' X 04835ffc,8'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, found: str):
    with pytest.raises(ValueError, match=r"sample\.txt: line 6: expected ' L\|S\|M ADDRESS,SIZE'") as caught:
        _import(tmp_path, HEADER + " L 04002010,4\n" + line + "\n L 04002010,4\n")
    assert str(caught.value).endswith(f"found {found}")
    assert not (tmp_path / "sample.nc").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + " L 04002010,4\nSYSCALL[78,1](39) sys_getpid ()[sync] --> Success(0x4e) \n", "line 6: process 78"),
        (HEADER + "SYSCALL[77,1](11) sys_munmap ( zero, 8192 )[sync] --> Success(0x0) \n", "line 5: expected integer arguments"),
        (HEADER, "no data accesses"),
        ("", "no data accesses"),
    ],
)
def test_other_bad_recordings(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        _import(tmp_path, text)


def test_a_missing_file_and_a_foreign_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nothing\.txt: no such file"):
        import_lackey(tmp_path / "nothing.txt", tmp_path / "out.nc")
    (tmp_path / "text.nc").write_text("not NetCDF")
    with pytest.raises(ValueError, match=r"^workload\.path=.*not a NetCDF file"):
        read_recording(tmp_path / "text.nc")


def test_memory_does_not_grow_with_the_text(tmp_path: Path):
    """64 MB of text (generated, three accesses a run) within 24 MB of memory."""
    lines = "".join(f" L {page:05x}040,8\n S {page:05x}080,8\n L {page:05x}0c0,4\n" for page in range(0x4000, 0x4800))
    path = tmp_path / "long.txt"
    with open(path, "w") as file:
        file.write(HEADER)
        while file.tell() < 64_000_000:
            file.write(lines)
    tracemalloc.start()
    counts = import_lackey(path, tmp_path / "long.nc", block_bytes=1 << 19)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts["accesses"] * 15 > 64_000_000
    assert counts["num_rows"] == counts["accesses"] // 3 * 2
    assert peak < 24_000_000


def test_the_recordings_that_come_with_lufjax():
    for name, num_threads in (("table_lookup", 1), ("sqlite_index", 1), ("python_threads", 4)):
        trace = build("replay", {"path": name}, num_cpus=4, seed=0, num_events=20_000)
        check_trace(trace)
        assert trace.page_vma.shape == (1, trace.num_vpns)
        assert len(set(trace.events[:, 0].tolist())) >= min(4, num_threads)
