"""Measure the exhaustive search against SPIN on the same machine and alphabet: enabled transitions per second, and the time to see the whole space.

``python -m experiments.benchmarks.promela [machine=FILE] [repeats=N] [backend=NAME] [policy ...]`` from the repository root; prints one JSON object.

SPIN searches on one core, breadth first and depth first, its model without assertions. The search runs on all cores, with every named state (only so
many, to know the rate) and with symmetry. All four in turn, ``repeats`` times; the fastest counts, because other load only makes a run slower.
Compiling is not counted: a first run of each of ours, which is not measured, compiles all that the others use, and what it takes longer is the
time to compile. On a busy machine compare CPU seconds, which are those of all cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lufjax.backends.runners import resolve_backend, use_all_cores
from lufjax.benchmark.facts import device_facts, versions
from lufjax.presets import config_dir, load_policy, policy_words
from lufjax.search.alphabet import Alphabet, load_alphabet
from lufjax.search.exhaustive import Limits, Result, explore
from lufjax.search.successors import Machine
from tests.promela import spin

POLICIES = ("eager", "linux")
STATES = 1_000_000
"""Of the search with every named state; the level in which there are so many is finished."""
OURS = ("named", "symmetry")
OPTIMISE = "-O3"
TABLE = 24
"""Of SPIN's hash table, as a power of two."""


@dataclass
class Timing:
    """One searcher: what it covers, and its fastest run in seconds, of the wall and of all its cores."""

    states: int = 0
    transitions: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def add(self, states: int, transitions: int, seconds: float, cpu_seconds: float) -> None:
        """One more run.

        Raises:
            RuntimeError: it covered something else than the run before.
        """
        if self.seconds and (states, transitions) != (self.states, self.transitions):
            raise RuntimeError(f"{states} states and {transitions} transitions after {self.states} and {self.transitions}")
        self.states, self.transitions = states, transitions
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)

    def facts(self) -> dict[str, Any]:
        """For the report."""
        best, cpu = min(self.seconds), min(self.cpu_seconds)
        rates = {"transitions_per_s": round(self.transitions / best), "transitions_per_cpu_s": round(self.transitions / cpu)}
        times = {"seconds": round(best, 3), "cpu_seconds": round(cpu, 3), "every_seconds": [round(s, 3) for s in self.seconds]}
        return {"states": self.states, "transitions": self.transitions, **rates, **times}


os.environ["LUFJAX_CACHE_DIR"] = "off"  # compile times are measured, not read


def measure(alphabet: Alphabet, policy: str, repeats: int, backend: str, directory: Path) -> dict[str, Any]:
    """All searchers of one policy, and what each takes to compile."""
    timings = {name: Timing() for name in ("spin_breadth_first", "spin_depth_first", *OURS)}
    programs, compile_s, machines, first, exhausted = {}, {}, {}, {}, {}
    for name in ("spin_breadth_first", "spin_depth_first"):
        began = time.monotonic()
        own = directory / policy / name
        programs[name] = spin.build(alphabet, policy_words(policy), own, breadth_first=name == "spin_breadth_first", quiet=True, optimise=OPTIMISE)
        compile_s[name] = round(time.monotonic() - began, 3)
    for name in OURS:
        began = time.monotonic()
        machines[name] = _search(alphabet, policy, name, backend)[0].machine
        first[name] = time.monotonic() - began
    for _ in range(repeats):
        for name, program in programs.items():
            found = spin.run(program, table=TABLE)
            timings[name].add(found.states, found.transitions, found.seconds, found.cpu_seconds)
        for name in OURS:
            result, cpu_seconds = _search(alphabet, policy, name, backend, machines[name])
            c = result.coverage
            exhausted[name] = c.exhausted
            timings[name].add(c.states, c.transitions, c.seconds, cpu_seconds)
    compile_s |= {name: round(first[name] - min(timings[name].seconds), 3) for name in OURS}
    found = {name: timing.facts() for name, timing in timings.items()}
    ratios = {}
    for of, name in (("transitions_per_s", "named"), ("transitions_per_cpu_s", "named"), ("seconds", "symmetry"), ("cpu_seconds", "symmetry")):
        best = (max if name == "named" else min)(found[other][of] for other in programs)
        ratios[f"{name}_over_spin_{of}"] = round(found[name][of] / best, 3)
    return {**found, **ratios, "exhausted": exhausted, "compile_s": compile_s}


def _search(alphabet: Alphabet, policy: str, name: str, backend: str, machine: Machine | None = None) -> tuple[Result, float]:
    """What was found, and CPU seconds."""
    cpu, limits = time.process_time(), Limits(states=STATES if name == "named" else 2**31 - 1)
    result = explore(alphabet, load_policy(policy), limits, symmetry=name == "symmetry", machine=machine, backend=backend)
    return result, time.process_time() - cpu


def main(arguments: list[str]) -> int:
    """Measure and print."""
    if spin.missing():
        print(f"not installed: {spin.missing()}", file=sys.stderr)
        return 2
    given = dict(text.split("=", 1) for text in arguments if "=" in text)
    repeats, policies = int(given.get("repeats", 3)), [text for text in arguments if "=" not in text] or POLICIES
    alphabet = load_alphabet(given.get("machine", config_dir() / "explore" / "tiny.yaml"))
    use_all_cores()
    backend = resolve_backend(given.get("backend", "native"))
    with tempfile.TemporaryDirectory() as directory:
        cases = {policy: measure(alphabet, policy, repeats, backend, Path(directory)) for policy in policies}
    tools = {name: _first_line(name, option) for name, option in (("spin", "-V"), ("cc", "--version"))}
    config = {"machine": alphabet.scenario.path.stem, "repeats": repeats, "backend": backend, "flags": [OPTIMISE, *spin.FLAGS], "table": TABLE}
    print(json.dumps({"device": device_facts(backend), "versions": versions() | tools, "config": config, "cases": cases}, indent=1))
    return 0


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
