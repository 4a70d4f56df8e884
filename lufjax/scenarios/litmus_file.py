"""A litmus file (kernel micro-steps, one a line) as event rows and expectations. Format: docs/LITMUS.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lufjax.events import MicroOp, Op, Violation

CLASSES = tuple(kind.name for kind in Violation)
MARK = "<--"
MAX_CPU, MAX_SPACES, MAX_PAGE, MAX_FRAME, MAX_OBJECT = 63, 8, 255, 1023, 255
Row = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Step:
    """One micro-step: its line in the file, its words, its event row, and the classes that it must show."""

    line: int
    words: str
    row: Row
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Litmus:
    """One litmus file, read and checked.

    Attributes:
        name: the name of the file without its suffix. title: its first comment.
        expect: the classes that occur in the file, in the order of :data:`CLASSES`; none is clean.
        num_cpus, num_processes, num_vpns, num_frames, num_file_pages, num_anon: the least machine that the steps need.
    """

    path: Path
    name: str
    title: str
    steps: tuple[Step, ...]
    expect: tuple[str, ...]
    num_cpus: int
    num_processes: int
    num_vpns: int
    num_frames: int
    num_file_pages: int
    num_anon: int


@dataclass
class _Reader:
    """What the steps read so far have named."""

    spaces: list[str] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)
    anons: dict[int, int] = field(default_factory=dict)
    homes: dict[str, int | None] = field(default_factory=dict)
    present: set[tuple[int, int]] = field(default_factory=set)
    mapped: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    promised: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    accessed: bool = False
    last_cpu: int = 0
    last_vpn: int = 0
    last_frame: int = 0
    fresh: int = 0

    def cpu(self, word: str) -> int:
        cpu = _number(word, r"c(\d+)", "a CPU", "c0", MAX_CPU)
        self.last_cpu = max(self.last_cpu, cpu)
        return cpu

    def frame(self, word: str) -> int:
        frame = _number(word, r"f(\d+)", "a frame", "f1", MAX_FRAME)
        self.last_frame = max(self.last_frame, frame)
        return frame

    def space(self, word: str) -> int:
        if not re.fullmatch(r"[A-Z]\w*", word):
            raise ValueError(f"{word}: expected an address space, as in A")
        if word not in self.spaces:
            if len(self.spaces) == MAX_SPACES:
                raise ValueError(f"{word}: expected at most {MAX_SPACES} address spaces")
            self.spaces.append(word)
        return self.spaces.index(word)

    def page(self, word: str) -> tuple[int, int]:
        space, dot, page = word.partition(".")
        if not dot:
            raise ValueError(f"{word}: expected a page, as in A.p0")
        vpn = _number(page, r"p(\d+)", "a page", "A.p0", MAX_PAGE)
        self.last_vpn = max(self.last_vpn, vpn)
        return self.space(space), vpn

    def object(self, word: str) -> str:
        match = re.fullmatch(r"(file|anon):(\d+)", word)
        if not match or int(match[2]) > MAX_OBJECT:
            raise ValueError(f"{word}: expected an object page, file:N or anon:N with N up to {MAX_OBJECT}")
        ids = self.files if match[1] == "file" else self.anons
        ids.setdefault(int(match[2]), len(ids))
        return f"{match[1]}:{int(match[2])}"

    def held(self, word: str) -> str:
        name = self.object(word)
        if name not in self.homes:
            raise ValueError(f"{word}: expected an object page that was placed in a frame before")
        return name


Draft = tuple[int, MicroOp | Op, int, int | str, int | tuple[str, int]]
"""A row whose object pages are still names: in ``arg``, or as (object, low bits) in ``repeat``."""


def _access(r: _Reader, words: list[str]) -> Draft:
    cpu, (space, vpn) = r.cpu(words[1]), r.page(words[2])
    if r.running.get(cpu) != space:
        raise ValueError(f"{words[2]}: expected an address space that {words[1]} runs; a switch comes first")
    r.accessed = True
    return cpu, Op.LOAD if words[0] == "load" else Op.STORE, vpn, 0, 1


def _switch(r: _Reader, words: list[str]) -> Draft:
    cpu, space = r.cpu(words[1]), r.space(words[2])
    if len(words) == 4 and words[3].removeprefix("tag=") != words[2]:
        raise ValueError(f"{words[3]}: expected the name of the address space, {words[2]}; an address space has one TLB tag here, its own")
    r.running[cpu] = space
    return cpu, Op.SWITCH, 0, space, 0


def _place(r: _Reader, words: list[str]) -> Draft:
    name, frame = r.object(words[1]), r.frame(words[2])
    r.homes[name] = frame
    return 0, MicroOp.PLACE, 0, name, frame


def _copy(r: _Reader, words: list[str]) -> Draft:
    r.held(words[1])
    return _place(r, words)


def _map(r: _Reader, words: list[str]) -> Draft:
    page, name, writable = r.page(words[1]), r.held(words[2]), _right(words[3])
    if r.homes[name] is None:
        raise ValueError(f"{name}: expected an object page that a frame holds; its frame was freed, place it again")
    r.mapped[page] = (name, writable)
    r.present.add(page)
    if not r.accessed:
        r.promised[page] = (name, writable)
    return 0, MicroOp.MAP, page[1], page[0], (name, writable * 2 + (0 if r.accessed else 1))


def _set(r: _Reader, words: list[str]) -> Draft:
    page = space, vpn = r.page(words[1])
    if page not in r.mapped:
        raise ValueError(f"{words[1]}: expected a page that is mapped; a map step comes first")
    extra = r.frame(words[2]) * 2 + _right(words[3])
    r.present.add(page)
    return 0, MicroOp.SET_PTE, vpn, space, extra


def _edit(op: MicroOp) -> Callable[[_Reader, list[str]], Draft]:
    def edit(r: _Reader, words: list[str]) -> Draft:
        page = space, vpn = r.page(words[1])
        if op == MicroOp.CLEAR_PTE:
            r.present.discard(page)
        elif page not in r.present:
            raise ValueError(f"{words[1]}: expected a page whose PTE is present")
        return 0, op, vpn, space, 0

    return edit


def _flush(r: _Reader, words: list[str]) -> Draft:
    cpu, what = r.cpu(words[1]), words[2]
    space = what.partition(".")[0]
    if len(words) == 4 and words[3] != f"tag={space}":
        raise ValueError(f"{words[3]}: expected tag={space}; an address space has one TLB tag here, its own")
    if what == "*":
        return cpu, MicroOp.FLUSH_MM, 0, -1, 0
    if what.endswith(".*"):
        return cpu, MicroOp.FLUSH_MM, 0, r.space(space), 0
    process, vpn = r.page(what)
    return cpu, MicroOp.FLUSH_PAGE, vpn, process, 0


def _evict(r: _Reader, words: list[str]) -> Draft:
    cpu, (space, vpn) = r.cpu(words[1]), r.page(words[2])
    return cpu, MicroOp.FLUSH_PAGE if words[0] == "evict" else MicroOp.FILL, vpn, space, 0


def _free(r: _Reader, words: list[str]) -> Draft:
    frame = r.frame(words[1])
    r.homes = {name: None if home == frame else home for name, home in r.homes.items()}
    return 0, MicroOp.FREE_FRAME if words[0] == "free" else MicroOp.ALLOC_FRAME, 0, 0, frame


def _object_step(op: MicroOp) -> Callable[[_Reader, list[str]], Draft]:
    return lambda r, words: (0, op, 0, r.held(words[1]), 0)


def _return(r: _Reader, words: list[str]) -> Draft:
    call, page = words[1], r.page(words[2])
    space, vpn = page[0], page[1]
    if call in ("munmap", "move"):
        if page in r.present:
            raise ValueError(f"{words[2]}: expected a page whose PTE was cleared; a call that leaves it present has unmapped nothing")
        r.promised.pop(page, None)
        r.mapped.pop(page, None)
        return 0, MicroOp.RETURN, vpn, space, 0
    source = r.mapped if call == "mmap" else r.promised
    if call not in ("mmap", "dontneed", "ro", "rw"):
        raise ValueError(f"{call}: expected munmap, dontneed, mmap, ro, rw or move")
    if page not in source:
        raise ValueError(f"{words[2]}: expected a page that {'a map step' if call == 'mmap' else 'the program'} has mapped")
    name, writable = source[page]
    if call == "dontneed" and name.startswith("anon"):
        name = f"fresh:{r.fresh}"  # zeros: a page that no frame has held
        r.fresh += 1
    if call in ("ro", "rw"):
        writable = int(call == "rw")
    r.promised[page] = r.mapped[page] = (name, writable)
    return 0, MicroOp.PERMIT if call in ("ro", "rw") else MicroOp.RETURN, vpn, space, (name, writable * 2 + 1)


STEPS: dict[str, tuple[str, Callable[[_Reader, list[str]], Draft]]] = {
    "place": ("place OBJECT FRAME", _place),
    "map": ("map PAGE OBJECT rw|ro", _map),
    "switch": ("switch CPU SPACE [TAG]", _switch),
    "load": ("load CPU PAGE", _access),
    "store": ("store CPU PAGE", _access),
    "clear": ("clear PAGE", _edit(MicroOp.CLEAR_PTE)),
    "set": ("set PAGE FRAME rw|ro", _set),
    "wp": ("wp PAGE", _edit(MicroOp.WRITE_PROTECT)),
    "mkclean": ("mkclean PAGE", _edit(MicroOp.MAKE_CLEAN)),
    "flush": ("flush CPU PAGE|SPACE.*|* [tag=T]", _flush),
    "free": ("free FRAME", _free),
    "alloc": ("alloc FRAME OWNER", _free),
    "fill": ("fill CPU PAGE", _evict),
    "evict": ("evict CPU PAGE", _evict),
    "copy": ("copy OBJECT FRAME", _copy),
    "fwrite": ("fwrite OBJECT", _object_step(MicroOp.WRITE_OBJECT)),
    "snap": ("snap OBJECT", _object_step(MicroOp.SNAP)),
    "ret": ("ret munmap|dontneed|mmap|ro|rw|move PAGE", _return),
}
"""First word of a line -> its grammar, and what reads it."""


def load_litmus(path: str | Path) -> Litmus:
    """Read a litmus file.

    Raises:
        ValueError: one line naming the file, the line and what was expected there.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    reader, drafts, expect, title = _Reader(), [], None, ""
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if line.lstrip().startswith("#"):
                comment = line.lstrip().lstrip("#").strip()
                title = title or comment
                if comment.startswith("expect:"):
                    expect = _expected(expect, comment.removeprefix("expect:").split())
            elif line.strip():
                drafts.append((number, *_step(reader, line)))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if expect is None:
        raise ValueError(f"{path}: no line '# expect: CLASS ...' or '# expect: clean'")
    if not drafts:
        raise ValueError(f"{path}: no steps; expected lines that begin with {', '.join(STEPS)}")
    marked = tuple(kind for kind in CLASSES if any(kind in classes for *_, classes in drafts))
    if marked != expect:
        raise ValueError(f"{path}: '# expect: {_words(expect)}' but its steps are marked {_words(marked)}; expected the same classes")
    steps = tuple(Step(number, words, _number_row(reader, row), classes) for number, words, row, classes in drafts)
    return Litmus(
        path=path, name=path.stem, title=title, steps=steps, expect=expect, num_cpus=reader.last_cpu + 1, num_processes=max(1, len(reader.spaces)),
        num_vpns=reader.last_vpn + 1, num_frames=reader.last_frame + 1, num_file_pages=max(1, len(reader.files)),
        num_anon=max(1, len(reader.anons) + reader.fresh),
    )  # fmt: skip


def _step(reader: _Reader, line: str) -> tuple[str, Draft, tuple[str, ...]]:
    text, mark, classes = line.partition(MARK)
    words = text.partition("#")[0].split()
    if not words or words[0] not in STEPS:
        raise ValueError(f"{' '.join(words) or line.strip()}: expected a step; steps begin with {', '.join(STEPS)}")
    grammar, read = STEPS[words[0]]
    optional = grammar.count("[")
    most = len(grammar.split())
    if not most - optional <= len(words) <= most:
        raise ValueError(f"{' '.join(words)}: expected {grammar}")
    flagged = tuple(classes.split()) if mark else ()
    if mark and not flagged:
        raise ValueError(f"{MARK}: expected classes after it, of {', '.join(CLASSES)}")
    if flagged and words[0] not in ("load", "store"):
        raise ValueError(f"{words[0]}: expected no {MARK}; only a load or a store can be marked")
    return " ".join(words), read(reader, words), _classes(flagged)


def _number_row(reader: _Reader, draft: Draft) -> Row:
    """Object names become backings: file pages first, as they were met, then anonymous ones, then fresh ones."""
    files = max(1, len(reader.files))

    def backing(name: str) -> int:
        kind, _, number = name.partition(":")
        ids = {"file": reader.files, "anon": reader.anons}.get(kind)
        first = 0 if kind == "file" else files if kind == "anon" else files + len(reader.anons)
        return first + (ids[int(number)] if ids is not None else int(number))

    cpu, op, vpn, arg, repeat = draft
    low = repeat if isinstance(repeat, int) else backing(repeat[0]) * 4 + repeat[1]
    return cpu, int(op), vpn, backing(arg) if isinstance(arg, str) else arg, low


def _expected(before: tuple[str, ...] | None, words: list[str]) -> tuple[str, ...]:
    if before is not None:
        raise ValueError("expect: expected one such line")
    if not words:
        raise ValueError(f"expect: expected clean, or classes of {', '.join(CLASSES)}")
    return () if words == ["clean"] else _classes(tuple(words))


def _classes(words: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [word for word in words if word not in CLASSES]
    if wrong:
        raise ValueError(f"{wrong[0]}: expected classes of {', '.join(CLASSES)}")
    return tuple(kind for kind in CLASSES if kind in words)


def _right(word: str) -> int:
    if word not in ("rw", "ro"):
        raise ValueError(f"{word}: expected rw or ro")
    return int(word == "rw")


def _number(word: str, pattern: str, what: str, example: str, last: int) -> int:
    match = re.fullmatch(pattern, word)
    if not match or int(match[1]) > last:
        raise ValueError(f"{word}: expected {what}, as in {example}, numbers up to {last}")
    return int(match[1])


def _words(classes: tuple[str, ...]) -> str:
    return " ".join(classes) or "clean"
