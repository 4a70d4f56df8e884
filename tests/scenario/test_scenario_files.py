"""Reading scenario files: what the words mean, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lufjax.events import FIRST_PAGE, Op, VmaFlag
from lufjax.presets import config_dir, preset_names
from lufjax.scenarios.scenario_file import SMALLEST, load_scenario

SHIPPED = sorted((config_dir() / "scenario").glob("*.yaml"))
MAP = {"process": 0, "pages": "0-1", "file": 0, "prot": "r", "flags": "shared"}


def small(**changes: Any) -> dict[str, Any]:
    """A correct scenario; ``changes`` replace fields."""
    fields = {"title": "a title", "source": "a source", "machine": {"num_cpus": 2, "num_vpns": 4, "num_file_pages": 4}, "maps": [MAP]}
    return fields | {"events": [{"cpu0": "load 0"}], "expect": {"default": []}} | changes


def written(folder: Path, content: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def rows_of(folder: Path, *events: str, **changes: Any) -> list[list[int]]:
    scenario = load_scenario(written(folder, small(events=[dict([event.split(": ", 1)]) for event in events], **changes)))
    return scenario.trace.events.tolist()


def test_shipped_files_share_one_compiled_program() -> None:
    assert len(SHIPPED) >= 7
    assert len({load_scenario(path).shape for path in SHIPPED}) == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_expect_something_of_every_preset(path: Path) -> None:
    assert set(preset_names("policy")) <= set(load_scenario(path).expect)


def test_every_word_becomes_its_rows(tmp_path: Path) -> None:
    allocations = (Op.ALLOC_FOREIGN, Op.FREE_FOREIGN, Op.ALLOC_ATOMIC, Op.TAKE_OFF, Op.DISCHARGE)
    plain = [(op.name.lower(), op) for op in (Op.RECLAIM_FLUSH, Op.TICK, *allocations)]
    assert rows_of(tmp_path, *(f"cpu1: {word}" for word, _ in plain)) == [[1, op, 0, 0, 0] for _, op in plain]
    assert rows_of(tmp_path, "cpu0: load 0-1", "cpu1: store 3 x7") == [[0, 1, 0, 0, 1], [0, 1, 1, 0, 1], [1, 2, 3, 0, 7]]
    assert rows_of(tmp_path, "cpu0: load 0; store 1") == [[0, 1, 0, 0, 1], [0, 2, 1, 0, 1]]
    assert rows_of(tmp_path, "cpu0: reclaim 1 of 0", "cpu0: reclaim", "cpu0: file_write 3") == [
        [0, 9, 1, 0, 0],
        [0, 9, 0, -1, 0],
        [0, 8, 0, 3, 0],
    ]
    assert rows_of(tmp_path, "cpu0: reclaim_flush open") == [[0, 10, 0, 1, 0]]
    assert rows_of(tmp_path, "cpu0: remote_write 2", "cpu1: truncate 3") == [[0, 20, 0, 2, 0], [1, 21, 0, 3, 0]]
    assert rows_of(tmp_path, "cpu0: switch idle", "cpu0: switch 0") == [[0, 13, 0, -1, 0], [0, 13, 0, 0, 0]]


def test_range_calls_become_page_events_and_a_finish(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "cpu0: munmap 0-1 tables") == [[0, 4, 0, 0, 0], [0, 4, 1, 0, 0], [0, 7, 0, 1, 0]]
    assert rows_of(tmp_path, "cpu0: madvise_dontneed 1 open", "cpu0: gather_finish") == [[0, 6, 1, 0, 0], [0, 7, 0, 0, 0]]
    assert rows_of(tmp_path, "cpu0: madvise_free 1") == [[0, 22, 1, 0, 0], [0, 7, 0, 0, 0]]
    assert rows_of(tmp_path, "cpu0: mremap 0-1 to=2") == [[0, 24, 0, 2, 0], [0, 24, 1, 3, 0], [0, 7, 0, 0, 0]]
    assert rows_of(tmp_path, "cpu0: munmap 0", "cpu0: exit")[2:] == [[0, 23, 1, 0, 0], [0, 7, 0, 1, 0]]
    assert rows_of(tmp_path, "cpu1: mmap 2-3 file=1") == [[1, 3, 2, 1, 1 + FIRST_PAGE], [1, 3, 3, 2, 1]]
    assert rows_of(tmp_path, "cpu1: mmap 2-3 flags=anon") == [[1, 3, 2, -1, 1 + FIRST_PAGE], [1, 3, 3, -1, 1]]


def test_mprotect_moves_each_mapping_to_a_vma_of_its_own(tmp_path: Path) -> None:
    maps = [MAP, {"pages": 2, "prot": "rw", "flags": "anon"}]
    scenario = load_scenario(written(tmp_path, small(maps=maps, events=[{"cpu0": "mprotect 1-2 prot=none"}])))
    assert scenario.trace.events[:, 3].tolist() == [2, 3, 0]
    may_write, shared = VmaFlag.MAYWRITE, VmaFlag.SHARED | VmaFlag.MAYWRITE
    assert scenario.trace.vmas.tolist() == [
        VmaFlag.READ | shared,
        VmaFlag.READ | VmaFlag.WRITE | may_write | VmaFlag.ANON,
        shared,
        may_write | VmaFlag.ANON,
    ]
    assert scenario.words == ("mprotect 1 prot=none", "mprotect 2 prot=none", "gather_finish")
    assert scenario.trace.page_vma.tolist() == [[0, 0, 1, -1]]


def test_a_fork_gives_each_vma_of_the_range_a_new_id_in_the_child(tmp_path: Path) -> None:
    machine = {"num_cpus": 2, "num_processes": 2, "num_vpns": 4, "num_file_pages": 4, "loaded": [0, 1]}
    maps = [MAP, {"process": 0, "pages": 2, "flags": "anon"}]
    events = ["cpu0: fork 0-2 to=1", "cpu1: exit", "cpu0: fork 2 to=1 open"]
    rows = [[0, 25, 0, 1, 2], [0, 25, 1, 1, 2], [0, 25, 2, 1, 3], [0, 7, 0, 0, 0], *([1, 23, v, 0, 0] for v in range(3)), [1, 7, 0, 1, 0]]
    assert rows_of(tmp_path, *events, machine=machine, maps=maps) == [*rows, [0, 25, 2, 1, 4]]
    scenario = load_scenario(tmp_path / "small.yaml")
    assert scenario.trace.vmas.tolist()[2:] == [*scenario.trace.vmas.tolist()[:2], scenario.trace.vmas[1]]
    assert scenario.words[:4] == ("fork 0 to=1", "fork 1 to=1", "fork 2 to=1", "gather_finish")


def test_words_of_a_page_can_be_written_in_a_file(tmp_path: Path) -> None:
    events = [
        "load 0",
        "store 0 x3",
        "mmap 2 file=3 prot=rw flags=private",
        "mmap 2 flags=anon prot=r",
        "fault_install 2",
        "fault_finish 2",
        "fault_install 0 store",
        "fault_finish 0",
        "mmap 3 file=2 prot=r flags=readonly",
        "reclaim 0 of 0",
        "migrate 0 of 0",
        "file_write 1",
        "switch idle",
    ]
    assert load_scenario(written(tmp_path, small(events=[{"cpu0": event} for event in events]))).words == tuple(events)


def test_sizes_are_rounded_up_to_shared_ones(tmp_path: Path) -> None:
    machine = {"num_cpus": 5, "num_vpns": 17, "num_frames": 3}
    scenario = load_scenario(written(tmp_path, small(machine=machine)))
    assert (scenario.shape.num_cpus, scenario.shape.num_vpns, scenario.shape.num_frames) == (8, 32, SMALLEST.num_frames)
    assert (scenario.sizes["num_cpus"], scenario.params["frames_in_use"], scenario.shape.l1.sets) == (5, 3, 32)


EVENT_MISTAKES = [
    ("cpu0: lod 0", "lod: no such event; allowed are load, store"),
    ("cpu0: load 0;", "an empty event: no such event"),
    ("cpu0: load 4", "pages=4: allowed are a page or a range within 0-3 (usage: load PAGES [xN])"),
    ("cpu0: load 2-1", "pages=2-1: allowed are"),
    ("cpu0: load", "pages=: allowed are"),
    ("cpu0: load 0 3", "3: allowed is xN"),
    ("cpu2: load 0", "allowed is 'cpuN: event', N from 0 to 1"),
    ("cpu0: mmap 0 file=4", "file=4: allowed are 0 to 3"),
    ("cpu0: mmap 0-1 file=3", "file=3: allowed are 0 to 2"),
    ("cpu0: mmap 0 prot=r", "file: missing"),
    ("cpu0: mmap 0 file=0 prot=x", "prot=x: allowed are none, r, rw"),
    ("cpu0: mmap 0 file=0 flags=anon", "flags=anon has no file"),
    ("cpu0: mmap 0 file=0 prot=rw flags=readonly", "prot=rw: allowed with flags=readonly are none, r"),
    ("cpu0: munmap 0 tables open", "allowed is one of them"),
    ("cpu0: munmap 0 prot=r", "prot=r: allowed are open, tables"),
    ("cpu0: mprotect 0", "prot: missing; allowed are none, r, rw"),
    ("cpu0: mprotect 3 prot=r", "pages=3: nothing is mapped there"),
    ("cpu0: reclaim 0", "0: allowed is PAGES of PROCESS"),
    ("cpu0: reclaim 0 of 1", "process=1: allowed are 0 to 0"),
    ("cpu0: migrate", "nothing: allowed is PAGES of PROCESS (usage: migrate PAGES of PROCESS)"),
    ("cpu0: migrate 0 of 1", "process=1: allowed are 0 to 0"),
    ("cpu0: switch 1", "process=1: allowed are idle or 0 to 0"),
    ("cpu0: reclaim_flush now", "now: allowed is open (usage: reclaim_flush [open])"),
    ("cpu0: tick 1", "1: nothing more is allowed"),
    ("cpu0: fault_install 0 load", "load: allowed is store (usage: fault_install PAGE [store])"),
    ("cpu0: fault_finish 0-1", "page=0-1: allowed is one page"),
    ("cpu0: file_write", "file=: allowed are 0 to 3"),
    ("cpu0: mremap 0 to=4", "to=4: allowed are 0 to 3"),
    ("cpu0: mremap 0", "to: missing; allowed is to=PAGE"),
    ("cpu0: fork 0", "to: missing; allowed is to=PROCESS"),
    ("cpu0: fork 0 to=0", "to=0: allowed is another process"),
    ("cpu0: fork 0 to=1", "to=1: allowed are 0 to 0"),
    ("cpu0: exit now", "now: nothing more is allowed"),
    ("cpu0: truncate 4", "file=4: allowed are 0 to 3"),
]


@pytest.mark.parametrize(("event", "message"), EVENT_MISTAKES)
def test_a_wrong_event_is_one_line_with_its_entry(tmp_path: Path, event: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"small\.yaml: events entry 2 ") as caught:
        rows_of(tmp_path, "cpu0: nop", event)
    assert message in str(caught.value)
    assert f"({event})" in str(caught.value)
    assert "\n" not in str(caught.value)


FILE_MISTAKES = [
    ({"machine": {"num_cpu": 2}}, "machine: num_cpu: no such field; allowed are num_cpus"),
    ({"machine": {"num_cpus": 0}}, "machine.num_cpus=0: allowed are integers from 1 to 1024"),
    ({"machine": {"num_frames": True}}, "machine.num_frames=True: allowed are integers"),
    ({"machine": {"reclaim_batch": "many"}}, "machine.reclaim_batch=many: allowed are integers"),
    ({"machine": {"num_cpus": 2, "loaded": [0]}}, "machine.loaded=[0]: allowed is a list of 2"),
    ({"machine": {"num_cpus": 2, "loaded": [0, 1]}}, "machine.loaded=1: allowed are idle or integers from 0 to 0"),
    ({"machine": {"drive": "fast"}}, "machine.drive=fast: allowed are scripted, load"),
    ({"machine": {"l1": {"sets": 2}}}, "machine.l1: ways: missing"),
    ({"machine": {"num_frames": 4, "fast_frames": 5}}, "machine.fast_frames=5: allowed are integers from 1 to 4"),
    ({"machine": {"num_cpus": 2, "kswapd_cpu": 2}}, "machine.kswapd_cpu=2: allowed are 0 to 1"),
    ({"maps": [MAP, {"pages": 1, "file": 1}]}, "maps entry 2: pages=1: a page of process 0 is mapped twice"),
    ({"maps": [{"file": 1}]}, "maps entry 1: it: pages: missing"),
    ({"maps": {"pages": 1}}, "maps: allowed is a list"),
    ({"events": []}, "events: empty"),
    ({"events": ["load 0"]}, "events entry 1 (load 0): allowed is 'cpuN: event'"),
    ({"expect": []}, "expect: allowed are lines"),
    ({"expect": {"linux": "MAPPING"}}, "expect.linux=MAPPING: allowed is a list of REUSE, MAPPING"),
    ({"expect": {"linux": ["STALE"]}}, "expect.linux=['STALE']: allowed is a list of REUSE, MAPPING"),
    ({"expect": {"lunix": []}}, "expect.lunix: policy=lunix: allowed are eager"),
    ({"expect": {"linux": [], "linux+flush_ceiling:33": []}}, "the same policy twice"),
    ({"title": 3}, "title=3: allowed is a line of text"),
    ({"colour": "red"}, "colour: no such field; allowed are title"),
]


@pytest.mark.parametrize(("changes", "message"), FILE_MISTAKES)
def test_a_wrong_field_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"small\.yaml: ") as caught:
        load_scenario(written(tmp_path, small(**changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- 1", "title: [", "title: a"])
def test_a_file_that_is_no_scenario_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"small\.yaml: "):
        load_scenario(written(tmp_path, content))


def test_what_is_expected_of_a_policy(tmp_path: Path) -> None:
    expect = {"luf_v10": [], "luf_v10+absorb:off": ["OLD_VALUE", "REUSE"]}
    scenario = load_scenario(written(tmp_path, small(expect=expect)))
    assert scenario.expected("luf_v10+absorb:off") == ("REUSE", "OLD_VALUE")
    assert scenario.expected("luf_v10+mmap_flush:off") == ()
    with pytest.raises(ValueError, match="has no entry for policy=linux"):
        scenario.expected("linux")


def test_a_readonly_mapping_never_becomes_writable(tmp_path: Path) -> None:
    maps = [{**MAP, "flags": "readonly"}]
    with pytest.raises(ValueError, match=r"events entry 1 .*pages=0: mapped with flags=readonly; allowed are prot=none, prot=r"):
        load_scenario(written(tmp_path, small(maps=maps, events=[{"cpu0": "mprotect 0 prot=rw"}])))
    assert load_scenario(written(tmp_path, small(maps=maps))).trace.vmas.tolist() == [VmaFlag.READ | VmaFlag.SHARED]
