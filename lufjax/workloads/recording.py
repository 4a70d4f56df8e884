"""A recorded program in a NetCDF file (docs/TRACES.md): written piece by piece, read whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5netcdf
import numpy as np
import xarray

from lufjax.workloads.address_space import AddressSpace

SCHEMA = "lufjax-recording-1"
MAX_REPEAT = 2**15 - 1
_CHUNK_ROWS = 1 << 16
_ROW_VARIABLES = {
    "thread": ("u1", "thread that accesses, 0 first"),
    "store": ("u1", "1: store, 0: load"),
    "vpn": ("u4", "dense virtual page number"),
    "repeat": ("u2", "back-to-back accesses"),
}
_CALL_VARIABLES = {
    "call_row": ("position", "rows before the call"),
    "call_thread": ("thread", "thread that calls"),
    "call_op": ("op", "3 MMAP, 4 MUNMAP, 5 MPROTECT, 6 MADVISE_DONTNEED"),
    "call_vpn": ("vpn", "first vpn"),
    "call_num_pages": ("num_pages", "pages"),
    "call_value": ("value", "MMAP: first file page or -1; MPROTECT: new VMA id; else 0"),
    "call_vma": ("vma", "MMAP: VMA id; else 0"),
    "call_first": ("first", "1: first range of its call"),
    "call_last": ("last", "1: last range of its call"),
    "call_free_tables": ("free_tables", "1: the call frees page tables"),
}


@dataclass(frozen=True)
class Recording:
    """A file in memory.

    Attributes:
        rows: ``int64[num_rows, 4]`` thread, store, vpn, repeat.
        calls: name without ``call_`` -> ``int64[num_calls]``, in order of ``row``.
        vmas: ``int64[num_vmas]`` VMA flags.
        initial_vma, initial_backing: ``int64[num_vpns]``; -1 where nothing is mapped, or anonymous.
        attrs: attributes of the file.
    """

    rows: np.ndarray
    calls: Mapping[str, np.ndarray]
    vmas: np.ndarray
    initial_vma: np.ndarray
    initial_backing: np.ndarray
    attrs: Mapping[str, object]

    def number(self, name: str) -> int:
        """Return an integer attribute."""
        return int(self.attrs[name])  # type: ignore[call-overload]


class RowWriter:
    """Writes a recording whose rows come piece by piece.

    Args:
        path: file to write.
        space: mappings and calls.
        attrs: attributes of the file.
    """

    def __init__(self, path: Path, space: AddressSpace, attrs: Mapping[str, str | int]) -> None:
        self._space, self._attrs = space, attrs
        self._runs = self._num_rows = 0
        self._call_rows: list[int] = []
        self._file = h5netcdf.File(path, "w")
        self._file.dimensions = {"row": None}
        self._rows: dict[str, h5netcdf.Variable] = {}
        for name, (dtype, about) in _ROW_VARIABLES.items():
            variable = self._file.create_variable(
                name, ("row",), dtype, chunks=(_CHUNK_ROWS,), compression="gzip", compression_opts=9, shuffle=True
            )
            variable.attrs["long_name"] = about
            self._rows[name] = variable

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._write_rest()
        self._file.close()

    def write(self, *, rows_per_run: np.ndarray, thread: np.ndarray, page: np.ndarray, store: np.ndarray, repeat: np.ndarray) -> None:
        """Append rows; ``rows_per_run`` tells which belong together, since calls are placed by the runs before them."""
        begin, end = self._num_rows, self._num_rows + page.size
        self._file.resize_dimension("row", end)
        columns = {"thread": thread, "store": store, "vpn": self._space.table.vpn_of(page), "repeat": repeat}
        for name, values in columns.items():
            self._rows[name][begin:end] = values.astype(_ROW_VARIABLES[name][0])
        rows_before = begin + np.concatenate([[0], np.cumsum(rows_per_run)])
        segments = self._space.segments
        while len(self._call_rows) < len(segments) and segments[len(self._call_rows)].position < self._runs + rows_per_run.size:
            self._call_rows.append(int(rows_before[segments[len(self._call_rows)].position - self._runs]))
        self._runs += rows_per_run.size
        self._num_rows = end

    def counts(self) -> dict[str, int]:
        """Return the sizes of what has been written."""
        space = self._space
        return {
            "num_rows": self._num_rows,
            "num_calls": sum(segment.last for segment in space.segments),
            "num_vpns": space.table.num_vpns,
            "touched_pages": int(space.table.touched.sum()),
            "num_file_pages": len(space.file_page),
            "num_anon": int(space.ever_anon.sum()),
            "mappers": space.mappers,
        }

    def _write_rest(self) -> None:
        space = self._space
        self._call_rows += [self._num_rows] * (len(space.segments) - len(self._call_rows))
        page = np.full(space.table.num_vpns, -1, dtype=np.int64)
        page[space.table.vpns] = space.table.pages
        self._variable("vma_flags", "vma", np.array(space.flags, dtype=np.int32), "1 READ, 2 WRITE, 4 MAYWRITE, 8 SHARED, 16 ANON")
        self._variable("page", "page", page, "recorded page number of each vpn (address / 4096), -1: none")
        self._variable("initial_vma", "page", space.initial_vma, "VMA id at the start, -1: not mapped")
        self._variable("initial_backing", "page", space.initial_backing, "file page at the start, -1: anonymous or not mapped")
        for name, (attribute, about) in _CALL_VARIABLES.items():
            values = self._call_rows if name == "call_row" else [int(getattr(segment, attribute)) for segment in space.segments]
            self._variable(name, "call", np.array(values, dtype=np.int64), about)
        self._file.attrs["schema"] = SCHEMA
        for name, value in (dict(self._attrs) | self.counts()).items():
            self._file.attrs[name] = value if isinstance(value, str) else np.int64(value)

    def _variable(self, name: str, dimension: str, values: np.ndarray, about: str) -> None:
        if dimension not in self._file.dimensions:
            self._file.dimensions[dimension] = values.size
        dtype = "i8" if name in ("page", "call_row") else "i4"
        variable = self._file.create_variable(name, (dimension,), dtype, data=values.astype(dtype), compression="gzip", shuffle=True)
        variable.attrs["long_name"] = about


def read_recording(path: Path) -> Recording:
    """Read a file written by :class:`RowWriter`; ``ValueError`` if it is something else."""
    if not path.is_file():
        raise ValueError(f"workload.path={str(path)!r}: no such file")
    try:
        dataset = xarray.open_dataset(path, engine="h5netcdf", decode_cf=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"workload.path={str(path)!r}: not a NetCDF file ({error})") from None
    with dataset:
        if dataset.attrs.get("schema") != SCHEMA:
            raise ValueError(f"workload.path={str(path)!r}: schema {dataset.attrs.get('schema')!r}, expected {SCHEMA!r}")
        column = {str(name): np.asarray(variable.values, dtype=np.int64) for name, variable in dataset.data_vars.items()}
        return Recording(
            rows=np.stack([column[name] for name in _ROW_VARIABLES], axis=1),
            calls={name.removeprefix("call_"): column[name] for name in _CALL_VARIABLES},
            vmas=column["vma_flags"],
            initial_vma=column["initial_vma"],
            initial_backing=column["initial_backing"],
            attrs=dict(dataset.attrs),
        )
