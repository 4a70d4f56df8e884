"""What an event costs: gathers, scatters and bytes of each kernel, how often it runs, and the bounds that follow, beside what is measured.

``python -m experiments.benchmarks.event_work [workload=llm] [events=N] [perf=true] [xla=true] [outputs=DIR]`` from the repository root; prints the
tables of docs/PERFORMANCE.md and writes them as JSON below ``DIR/event_work``.

* Gathers, scatters, bytes, sectors of 32 bytes: from the jaxprs of the kernels (``lufjax/benchmark/work.py``). Visits: from native code that
  counts them.
* LLVM instructions: of the optimised module, block by block, times how often each block runs; without phis, address computations and casts, which
  mostly cost nothing.
* Bounds: memory bandwidth (as STREAM measures it) and additions per second, both measured here; 4.8 TB/s for an H200, from its data sheet.
* ``perf=true``: share of the time by kernel, from ``perf record`` on the clock. ``xla=true``: XLA's own analysis of each kernel's program.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from lufjax import engine, provenance
from lufjax.backends import native, rollout
from lufjax.benchmark import measured, work
from lufjax.benchmark.cases import Batch, build, cases
from lufjax.benchmark.facts import device_facts
from lufjax.benchmark.options import parse
from lufjax.params import MachineParams
from lufjax.policy import FlushPolicy
from lufjax.trace import ops_of

H200 = 4.8e12
"""Bytes per second."""
FREE = ("phi", "getelementptr", "sext", "zext", "trunc", "bitcast")
I64 = ir.IntType(64)
CHAINS, LENGTH, LOOPS = 8, 16, 20_000_000
XLA_LANES, XLA_SLOTS = 1024, 256


@dataclass(frozen=True)
class Options:
    """Words of the command line. ``lanes``: of each of the benchmark's eight policies."""

    workload: str = "llm"
    events: int = 60_000
    repeats: int = 5
    perf: bool = False
    xla: bool = False
    outputs: str = "outputs"


def batch_of(options: Options) -> Batch:
    """The machine of ``llm_8cpu``, a lane of each policy, on a workload."""
    like = cases(parse({}), "native")[0]
    words = tuple(f"workload={options.workload}" if word.startswith("workload=") else word for word in like.overrides)
    words = tuple(word for word in words if options.workload == "llm" or not word.startswith("workload.file_pages"))
    return build(replace(like, overrides=words, num_lanes=len(like.policies), num_events=options.events, max_seeds=1))


class Runnable:
    """Native code for a batch, from its module after ``change``; every function can be found by name."""

    def __init__(self, batch: Batch, change: Callable[[str], str] = lambda text: text) -> None:
        self.batch, self.program = batch, engine.program_for(batch.params, ops_of(batch.traces))
        module = native.build_run_lanes(batch.shape, self.program, native.arrays_of(batch.shape))
        for function in module.functions:
            function.linkage = ""
        target = native.host()
        optimised = native.optimised(module, target)
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(change(str(optimised))), target)
        self.engine.finalize_object()
        self.compiled = native.NativeProgram(self.engine, native.RUN_LANES(self.engine.get_function_address("run_lanes")))

    def run(self) -> float:
        """CPU seconds of the compiled loop, from the first event to the last."""
        batch = self.batch
        state = work.start(batch.shape, batch.params, batch.traces, batch.trace_index)
        events = np.ascontiguousarray(rollout.pack_events(np.stack([trace.events for trace in batch.traces])))
        where, stop = batch.trace_index.astype(np.int32), np.full(len(batch.trace_index), batch.num_events, np.int32)
        begin = time.thread_time()
        native.run_block(self.compiled, batch.params, state, events, where, stop)
        return time.thread_time() - begin


class Counting:
    """Adds a counter to every block of an optimised module: the instructions that ran, by function."""

    def __init__(self) -> None:
        self.functions: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        lines, function, serial = [], "", 0
        block: list[str] = []

        def close() -> None:
            nonlocal serial
            body = [line for line in block if line.startswith("  ") and not line.startswith("  ]") and not re.match(r"\s+i32 \S+, label", line)]
            paid = sum(not any(f" {word} " in line.split("=", 1)[-1][:20] for word in FREE) for line in body)
            at = next((i for i, line in enumerate(block) if line.startswith("  ") and "= phi " not in line), None)
            if function and at is not None:
                serial += 1
                name = f"@instructions_{function}"
                block[at:at] = [
                    f"  %c{serial}a = load i64, ptr {name}, align 8", f"  %c{serial}b = add i64 %c{serial}a, {paid}",
                    f"  store i64 %c{serial}b, ptr {name}, align 8",
                ]  # fmt: skip
            lines.extend(block)
            block.clear()

        for line in text.splitlines():
            if (begin := re.match(r"define .*@(\w+)\(", line)) is not None:
                function = begin[1]
                self.functions[function] = f"instructions_{function}"
                lines.append(line)
            elif line.startswith("}"):
                close()
                function = ""
                lines.append(line)
            elif function and re.match(r"[\w.]+:", line):
                close()
                block.append(line)
            elif function:
                block.append(line)
            else:
                lines.append(line)
        return "\n".join([*lines, *(f"@{name} = global i64 0, align 8" for name in self.functions.values())])


def count_instructions(batch: Batch) -> dict[str, float]:
    """LLVM instructions for each event, by function."""
    counting = Counting()
    code = Runnable(batch, counting)
    code.run()
    events = batch.lane_events
    return {
        function: ctypes.c_int64.from_address(code.engine.get_global_value_address(name)).value / events
        for function, name in counting.functions.items()
    }


def additions_per_second(repeats: int = 5) -> float:
    """Independent 32-bit additions and exclusive-ors that one core does in a second of CPU time; the best of the repeats."""
    i32 = ir.IntType(32)
    module = ir.Module(name="additions")
    function = ir.Function(module, ir.FunctionType(i32, [i32, i32, I64]), name="additions")
    a, b, count = function.args
    entry, body, leave = (function.append_basic_block(name) for name in ("entry", "body", "leave"))
    ir.IRBuilder(entry).branch(body)
    builder = ir.IRBuilder(body)
    index, chains = builder.phi(I64), [builder.phi(i32) for _ in range(CHAINS)]
    values: list[Any] = list(chains)
    for _ in range(LENGTH // 2):
        values = [builder.xor(builder.add(value, a), b) for value in values]
    index.add_incoming(I64(0), entry)
    index.add_incoming(builder.add(index, I64(1)), body)
    for number, (chain, value) in enumerate(zip(chains, values, strict=True)):
        chain.add_incoming(i32(number), entry)
        chain.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", index, count), body, leave)
    builder = ir.IRBuilder(leave)
    total = values[0]
    for value in values[1:]:
        total = builder.xor(total, value)
    builder.ret(total)
    target = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64)(engine.get_function_address("additions"))
    loops, best = LOOPS // LENGTH, 0.0
    for _ in range(repeats):
        begin = time.thread_time()
        run(3, 5, loops)
        best = max(best, CHAINS * LENGTH * loops / (time.thread_time() - begin))
    return best


def time_shares(code: Runnable, repeats: int) -> dict[str, float]:
    """Share of the samples of ``perf record`` by function of the compiled code.

    Raises:
        RuntimeError: ``perf`` is not there or not allowed.
    """
    names = [f"kernel_{group}" for group in code.program] + ["run_lane", "run_lanes"]
    begins = sorted((code.engine.get_function_address(name), name) for name in names)
    ends = [begin for begin, _ in begins[1:]] + [begins[-1][0] + 4096]
    Path(f"/tmp/perf-{os.getpid()}.map").write_text("".join(f"{a:x} {end - a:x} {name}\n" for (a, name), end in zip(begins, ends, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        perf = subprocess.Popen(["perf", "record", "-q", "-e", "cpu-clock", "-F", "2000", "-p", str(os.getpid()), "-o", data])
        time.sleep(1)
        for _ in range(repeats):
            code.run()
        perf.send_signal(signal.SIGINT)
        perf.wait()
        listed = subprocess.run(["perf", "script", "-i", data, "-F", "ip,sym"], capture_output=True, text=True, check=True).stdout.split()
    Path(f"/tmp/perf-{os.getpid()}.map").unlink()
    found = {name: listed.count(name) for name in names}
    if not sum(found.values()):
        raise RuntimeError("perf saw nothing of the compiled code")
    return {name: count / sum(found.values()) for name, count in found.items()}


def xla_analysis(batch: Batch, program: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """XLA's own cost analysis of each kernel as it runs on ``XLA_SLOTS`` lanes, for each lane: bytes, gathers, scatters."""
    base = work.start(batch.shape, batch.params, batch.traces, batch.trace_index[:1])
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((XLA_LANES, *leaf.shape[1:]), leaf.dtype), base)
    lane = jax.ShapeDtypeStruct((XLA_LANES,), np.int32)
    params = MachineParams(*(lane for _ in MachineParams._fields[:-1]), policy=FlushPolicy(*(lane for _ in FlushPolicy._fields)))
    events, lanes = jax.ShapeDtypeStruct((1, batch.num_events, 4), np.int32), jax.ShapeDtypeStruct((XLA_SLOTS,), np.int32)
    found = {}
    for group in program:
        kernel = jax.jit(lambda p, s, e, t, n, group=group: rollout.run_phase(group, batch.shape, p, s, e, t, n), donate_argnums=(1,))
        lowered = kernel.lower(params, state, events, lane, lanes)
        text = lowered.as_text()
        cost = lowered.compile().cost_analysis()
        found[group] = {
            "bytes": cost["bytes accessed"] / XLA_SLOTS, "gathers": text.count('"stablehlo.gather"('), "scatters": text.count('"stablehlo.scatter"('),
        }  # fmt: skip
    return found


def measure(options: Options) -> dict[str, Any]:
    """Everything, by kernel and for the machine."""
    batch = batch_of(options)
    code = Runnable(batch)
    seconds = min(code.run() for _ in range(options.repeats))
    visits = work.count_visits(batch.shape, batch.params, batch.traces, batch.trace_index, batch.num_events)
    instructions = count_instructions(batch)
    shares = time_shares(code, options.repeats) if options.perf else {}
    analysis = xla_analysis(batch, tuple(group for group in code.program if visits[group])) if options.xla else {}
    kernels = {}
    for group in code.program:
        counted = work.kernel_work(group, batch.shape)
        kernels[group] = {
            "visits": visits[group], **asdict(counted), "touched": counted.touched, "instructions": instructions[f"kernel_{group}"],
            "share": shares.get(f"kernel_{group}"), "xla": analysis.get(group),
        }  # fmt: skip
    return {
        "kernels": kernels, "ns_per_event": 1e9 * seconds / batch.lane_events, "instructions": sum(instructions.values()),
        "loop_share": shares.get("run_lane"), "bandwidth_one": measured.stream_bandwidth(1),
        "bandwidth_all": measured.stream_bandwidth(engine.num_cores()), "additions": additions_per_second(),
        "options": asdict(options), "device": device_facts("native"), "provenance": provenance.environment(),
    }  # fmt: skip


def totals(report: dict[str, Any]) -> dict[str, float]:
    """Of an event: gathers, scatters, bytes, bytes of whole sectors."""
    kernels = report["kernels"].values()
    return {
        "gathers": sum(k["visits"] * k["gathers"] for k in kernels), "scatters": sum(k["visits"] * k["scatters"] for k in kernels),
        "touched": sum(k["visits"] * k["touched"] for k in kernels), "sectors": sum(k["visits"] * k["sectors"] for k in kernels) * work.SECTOR,
    }  # fmt: skip


def as_text(report: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = [
        "| kernel | visits per event | gathers, scatters per visit | bytes per visit | per event | LLVM instructions per event | share of time |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    shown = {group: k for group, k in report["kernels"].items() if k["visits"] > 0.0005}
    for group, k in sorted(shown.items(), key=lambda item: -item[1]["instructions"]):
        share = "" if k["share"] is None else f"{100 * k['share']:.0f} %"
        lines.append(
            f"| `{group}` | {k['visits']:.3f} | {k['gathers']}, {k['scatters']} | {k['touched']} | {k['visits'] * k['touched']:.0f} | "
            f"{k['instructions']:.0f} | {share} |"
        )
    total, device = totals(report), report["device"]
    loop = "" if report["loop_share"] is None else f"{100 * report['loop_share']:.0f} %"
    in_kernels = sum(k["instructions"] for k in report["kernels"].values())
    lines.append(f"| the loop over phases | | | | | {report['instructions'] - in_kernels:.0f} | {loop} |")
    lines.append(f"| an event | | {total['gathers']:.1f}, {total['scatters']:.1f} | | {total['touched']:.0f} | {report['instructions']:.0f} | |")
    if any(k["xla"] for k in shown.values()):
        lines += ["", "| kernel | gathers, scatters of the XLA program | bytes per visit, by XLA's analysis | counted here |", "|---|---|---|---|"]
        for group, k in shown.items():
            lines.append(f"| `{group}` | {k['xla']['gathers']}, {k['xla']['scatters']} | {k['xla']['bytes']:,.0f} | {k['touched']} |")
    own = 1e3 / report["ns_per_event"]
    bounds = [
        (f"memory, one core ({report['bandwidth_one'] / 1e9:.1f} GB/s)", report["bandwidth_one"] / total["touched"] / 1e6),
        (f"instructions, one core ({report['additions'] / 1e9:.1f} G additions/s)", report["additions"] / report["instructions"] / 1e6),
    ]
    lines += ["", f"{device['cpu_model']}; one core: {own:.2f} M events per CPU second ({report['ns_per_event']:.0f} ns each)"]
    lines += ["", "| bound | M events/s | engine / bound |", "|---|---|---|"]
    lines += [f"| {name} | {bound:.1f} | {own / bound:.2f} |" for name, bound in bounds]
    lines.append(f"| memory, all cores ({report['bandwidth_all'] / 1e9:.1f} GB/s) | {report['bandwidth_all'] / total['touched'] / 1e6:.1f} | |")
    lines.append(f"| H200, {H200 / 1e12} TB/s, bytes wanted | {H200 / total['touched'] / 1e6:.0f} | |")
    lines.append(f"| H200, whole sectors ({total['sectors']:.0f} bytes per event) | {H200 / total['sectors'] / 1e6:.0f} | |")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Measure, write and print."""
    given = dict(word.split("=", 1) for word in words)
    options = Options(**{name: _value(getattr(Options, name), text) for name, text in given.items()})
    report = measure(options)
    folder = Path(options.outputs) / "event_work"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{provenance.now():%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(as_text(report), path, sep="\n\n")
    return 0


def _value(like: Any, text: str) -> Any:
    return text == "true" if isinstance(like, bool) else type(like)(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
