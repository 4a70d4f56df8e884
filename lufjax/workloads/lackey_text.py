"""The text of ``valgrind --tool=lackey --trace-mem=yes``, read in blocks of bounded size and parsed with numpy.

Data accesses are lines `` L ADDRESS,SIZE``, `` S ..`` and `` M ..`` (modify: a load, then a store), instruction fetches
``I  ADDRESS,SIZE``; address hexadecimal, size in bytes. Everything else that valgrind 3.19 prints is passed on as text.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

BLOCK_BYTES = 1 << 24
_EXPECTED = "expected ' L|S|M ADDRESS,SIZE', 'I  ADDRESS,SIZE', or a line of valgrind's ('==', '--', 'SYSCALL[', ' --> ')"
_MESSAGES = (b"==", b"--", b"SYSCALL[", b" --> ")
_LONGEST_ADDRESS = 16
_HEX = np.full(256, 255, dtype=np.uint8)
_HEX[list(b"0123456789")] = range(10)
_HEX[list(b"abcdef")] = range(10, 16)
_HEX[list(b"ABCDEF")] = range(10, 16)
_SPACE, _COMMA, _NEWLINE, _FETCH = (ord(char) for char in " ,\nI")


@dataclass(frozen=True)
class Block:
    """A run of whole lines.

    Attributes:
        kind: ``uint8[n]`` letter of each access (L, S, M, or I if fetches are wanted).
        address, size: ``int64[n]`` bytes.
        messages: (accesses of this block before it, line number, text) of each message, in order.
        num_lines: lines of the block.
    """

    kind: np.ndarray
    address: np.ndarray
    size: np.ndarray
    messages: list[tuple[int, int, str]]
    num_lines: int


def read_blocks(path: Path, *, with_fetches: bool = False, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield the blocks of a trace; ``.gz`` files are decompressed on the way, ``-`` is standard input.

    Memory is bounded by a multiple of ``block_bytes``, whatever the length of the file (a pipe will do).

    Raises:
        ValueError: a line is none of those expected; names file, line number and text.
    """
    rest, line = b"", 1
    with _open(path) as file:
        while data := file.read(block_bytes):
            data = rest + data
            cut = data.rfind(b"\n") + 1
            rest = data[cut:]
            if cut:
                block = _parse(data[:cut], path, line, with_fetches)
                line += block.num_lines
                yield block
            elif len(rest) > block_bytes:
                raise ValueError(f"{path}: line {line}: longer than {block_bytes} bytes; {_EXPECTED}")
    if rest:
        yield _parse(rest + b"\n", path, line, with_fetches)


def _open(path: Path) -> IO[bytes]:
    if str(path) == "-":
        return open(sys.stdin.fileno(), "rb", closefd=False)
    if not path.exists() or path.is_dir():
        raise ValueError(f"{path}: no such file; expected the output of valgrind --tool=lackey --trace-mem=yes")
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _parse(data: bytes, path: Path, first_line: int, with_fetches: bool) -> Block:
    text = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    head = [text[np.minimum(starts + offset, text.size - 1)] for offset in range(3)]
    is_data = (head[0] == _SPACE) & (head[2] == _SPACE) & np.isin(head[1], list(b"LSM"))
    is_fetch = (head[0] == _FETCH) & (head[1] == _SPACE) & (head[2] == _SPACE)
    is_access = is_data | is_fetch if with_fetches else is_data
    accesses = np.flatnonzero(is_access)
    address, size, is_good = _numbers(text, starts[accesses] + 3, ends[accesses])
    messages, before = [], np.cumsum(is_access) - is_access
    others = np.flatnonzero(~(is_data | is_fetch))
    bad = accesses[~is_good][:1].tolist()
    for index in others.tolist():
        line = data[starts[index] : ends[index]]
        if line and not line.startswith(_MESSAGES):
            bad.append(index)
            break
        messages.append((int(before[index]), first_line + index, line.decode(errors="replace")))
    if bad:
        index = min(bad)
        found = data[starts[index] : ends[index]][:80].decode(errors="replace")
        raise ValueError(f"{path}: line {first_line + index}: {_EXPECTED}, found {found!r}")
    kind = np.where(is_fetch, head[0], head[1])[accesses]
    return Block(kind, address, size, messages, ends.size)


def _numbers(text: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parse ``ADDRESS,SIZE`` in ``[start, end)``: addresses, sizes, and whether each line is well-formed."""
    comma = np.full(start.size, -1, dtype=np.int64)
    for digits in (4, 3, 2, 1):
        at = end - 1 - digits
        comma = np.where((at > start) & (text[np.maximum(at, 0)] == _COMMA), at, comma)
    length = comma - start
    is_good = (comma >= 0) & (length <= _LONGEST_ADDRESS)
    address, is_hex = _digits(text, start, np.where(is_good, length, 0), 16)
    size, is_decimal = _digits(text, comma + 1, np.where(is_good, end - comma - 1, 0), 10)
    return address, size, is_good & is_hex & is_decimal & (size > 0)


def _digits(text: np.ndarray, start: np.ndarray, length: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    value = np.zeros(start.size, dtype=np.int64)
    is_good = np.ones(start.size, dtype=bool)
    for num_digits in np.unique(length).tolist():
        rows = np.flatnonzero(length == num_digits)
        position, total, worst = start[rows], np.zeros(rows.size, dtype=np.int64), np.zeros(rows.size, dtype=np.uint8)
        for offset in range(num_digits):
            digit = _HEX[text[position + offset]]
            np.maximum(worst, digit, out=worst)
            total = total * base + digit
        value[rows] = total
        is_good[rows] = worst < base
    return value, is_good
