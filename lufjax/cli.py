"""The ``lufjax`` command. Every sub-command imports what it needs when it runs, so ``lufjax --help`` is quick.

Exit codes: 0 done, 1 the simulation failed or an expectation does not hold, 2 wrong input (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from lufjax import __version__

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130
USAGE = """\
usage: lufjax COMMAND ...

TLB shootdowns under lazy unmap flush policies, simulated in batches.

  run [OVERRIDE ...]              simulate a sweep (lufjax run --help lists every setting)
  scenario FILE [policy=NAME]     play a hand-written scenario and check what it expects (--json)
  matrix [FILE ...] [policy=A,B]  every scenario under every policy (--figure FILE, --json)
  explore policy=NAME [machine=NAME]  search every order of events for violations (lufjax explore --help)
  ablate policy=NAME [machine=A,B] every rule replaced alone: what it lets through, and in how few events (--json)
  litmus FILE ... | --all         play kernel micro-step files and check what they expect (--json)
  policy list | show A | diff A B rules of the presets
  workload list                   workloads of the presets
  plot RUN [cost=NAME]            draw the figures of a run again, with another cost model
  report RUN                      write report.md of a run again
  compare RUN_A RUN_B             what differs in config, and by how much in results
  bench [--json] [KEY=VALUE ...]  speed by lanes, compile time, ratio to the C program, as text, file and figure
  import-trace IN OUT             valgrind lackey output -> a trace file for workload=replay

  --version, --help"""


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong argument as ``ValueError``, so that it is printed like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # XLA logs, as an error, that features which it made up are missing, for each kept program that it reads; what fails is raised anyway.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return _dispatch(arguments)
    except ValueError as error:
        if os.environ.get("LUFJAX_TRACEBACK"):
            raise
        print(f"lufjax: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("lufjax: interrupted; finished chunks of a run are kept, the same command goes on with them", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else WRONG_INPUT
    if arguments[0] == "--version":
        print(f"lufjax {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise ValueError(f"{command}: no such command; allowed are {', '.join(COMMANDS)}")
    return COMMANDS[command](rest)


def _run(arguments: list[str]) -> int:
    from lufjax.config import load_run_config, parse_arguments

    parsed = parse_arguments(arguments)
    if parsed.prints_only:
        return _print_with_hydra(parsed)
    from lufjax.provenance import refuse_broken_jax

    refuse_broken_jax()
    config = load_run_config(arguments)
    from lufjax.sweeps import sweep

    try:
        run_dir = sweep.run(config, list(parsed.overrides))
    except sweep.SweepFault as fault:
        print(f"lufjax: {fault}", file=sys.stderr)
        return FAILED
    print(run_dir)
    return 0


def _print_with_hydra(parsed: Any) -> int:
    """``--help``, ``--cfg``, ``--info`` and the like: Hydra prints them as Hydra users know them."""
    import hydra

    from lufjax.config import compose_config, hydra_arguments
    from lufjax.presets import config_dir

    if parsed.flags.cfg:
        compose_config(parsed, show=True)
    shown = hydra_arguments(parsed)
    before, sys.argv = sys.argv, ["lufjax run", *shown]
    try:
        hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(lambda config: None)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    finally:
        sys.argv = before
    return 0


def _scenario(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax scenario", description="Play a scenario and check what it expects.")
    parser.add_argument("file", help="a YAML file, or the name of one in conf/scenario")
    parser.add_argument("overrides", nargs="*", help="policy=NAME, policy.RULE=VALUE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_intermixed_args(arguments)
    chosen = _pairs(options.overrides, ("policy",), prefix="policy.")
    rules, name = _rules(chosen), chosen.get("policy")
    if rules and name is None:
        raise ValueError(f"policy.{next(iter(rules))}: needs a preset to replace it in, as in policy=luf_v10")
    from lufjax.presets import find_config, policy_words
    from lufjax.provenance import refuse_broken_jax

    refuse_broken_jax()
    path, words = find_config("scenario", options.file), None if name is None else policy_words(name, rules)
    from lufjax.scenarios import scenario

    return scenario.main(path, words, name, options.json)


def _matrix(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax matrix", description="Play scenarios under policies in one batch: the verdict matrix.")
    parser.add_argument("files", nargs="*", help="scenario files or names (all shipped ones by default), and policy=A,B (all presets by default)")
    parser.add_argument("--figure", help="draw the matrix into this file (.png, .pdf, .svg)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_intermixed_args(arguments)
    chosen = _pairs([text for text in options.files if "=" in text], ("policy",))
    files = [text for text in options.files if "=" not in text]
    from lufjax.presets import find_config, policy_words, preset_names
    from lufjax.provenance import refuse_broken_jax

    presets = preset_names("policy") if not chosen else tuple(str(chosen["policy"]).split(","))
    for preset in presets:
        policy_words(preset)
    figure = None if options.figure is None else Path(options.figure)
    if figure is not None and figure.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure {figure}: allowed are files that end in .png, .pdf or .svg")
    refuse_broken_jax()
    from lufjax.scenarios import matrix
    from lufjax.scenarios.scenario_file import load_scenario

    scenarios = [load_scenario(find_config("scenario", file)) for file in files or preset_names("scenario")]
    return matrix.main(scenarios, presets, figure, options.json)


def _explore(arguments: list[str]) -> int:
    from lufjax.presets import find_config
    from lufjax.search import options as search_options

    parser = OneLineParser(
        prog="lufjax explore", description="Search the orders of a few events for violations; docs/EXPLORE.md.",
        epilog=search_options.usage(), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("overrides", nargs="+", help="policy=NAME, policy.RULE=VALUE, and KEY=VALUE as below")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_intermixed_args(arguments)
    chosen = _pairs(options.overrides, ("policy", "machine", *search_options.KEYS), prefix="policy.")
    policy, words = _policy_of(chosen, "explore policy=luf_v10")
    path = find_config("explore", str(chosen.get("machine", "tiny")))
    from lufjax.provenance import refuse_broken_jax

    refuse_broken_jax()
    from lufjax.search import answer
    from lufjax.search.alphabet import load_alphabet

    alphabet = load_alphabet(path)
    return answer.main(alphabet, policy, words, search_options.read(chosen, alphabet), options.json)


def _ablate(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax ablate", description="Replace every rule of a policy alone and search; docs/EXPLORE.md.")
    parser.add_argument("overrides", nargs="+", help="policy=NAME, policy.RULE=VALUE, machine=A,B (all of conf/explore), states=N (30000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_intermixed_args(arguments)
    chosen = _pairs(options.overrides, ("policy", "machine", "states"), prefix="policy.")
    policy, words = _policy_of(chosen, "ablate policy=luf_v12")
    from lufjax.presets import find_config, preset_names

    names = str(chosen["machine"]).split(",") if "machine" in chosen else preset_names("explore")
    states = chosen.get("states", 30000)
    if not isinstance(states, int) or isinstance(states, bool) or not 1 <= states <= 10**8:
        raise ValueError(f"states={states}: allowed are integers from 1 to 1e+08")
    from lufjax.provenance import refuse_broken_jax

    refuse_broken_jax()
    from lufjax.search import ablation
    from lufjax.search.alphabet import load_alphabet

    return ablation.main([load_alphabet(find_config("explore", name)) for name in names], policy, words, states, options.json)


def _litmus(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax litmus", description="Play kernel micro-step files in one batch; format: docs/LITMUS.md.")
    parser.add_argument("files", nargs="*", help="litmus files, or names of shipped ones (K02, L01_fixed)")
    parser.add_argument("--all", action="store_true", help="every shipped file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.all == bool(options.files):
        raise ValueError("lufjax litmus: expected FILE ..., or --all for every shipped file")
    from lufjax.presets import find_litmus, litmus_files
    from lufjax.provenance import refuse_broken_jax

    refuse_broken_jax()
    paths = litmus_files() if options.all else [find_litmus(file) for file in options.files]
    from lufjax.scenarios import litmus

    return litmus.main(paths, options.json)


def _policy(arguments: list[str]) -> int:
    from lufjax import listing

    actions: dict[str, tuple[int, Callable[..., str]]] = {
        "list": (0, listing.policy_list),
        "show": (1, listing.policy_show),
        "diff": (2, listing.policy_diff),
    }
    return _listing("policy", arguments, actions)


def _workload(arguments: list[str]) -> int:
    from lufjax import listing

    return _listing("workload", arguments, {"list": (0, listing.workload_list)})


def _listing(command: str, arguments: list[str], actions: dict[str, tuple[int, Callable[..., str]]]) -> int:
    action, *names = arguments or [""]
    usages = ", ".join(f"lufjax {command} {name}{' PRESET' * count}" for name, (count, _) in actions.items())
    if action not in actions or len(names) != actions[action][0]:
        raise ValueError(f"lufjax {command} {' '.join(arguments)}: allowed are {usages}")
    print(actions[action][1](*names))
    return 0


def _plot(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax plot", description="Draw the figures of a run again.")
    parser.add_argument("run", help="a run directory")
    parser.add_argument("overrides", nargs="*", help="cost=NAME, cost.FIELD=VALUE")
    options = parser.parse_args(arguments)
    chosen = _pairs(options.overrides, ("cost",), prefix="cost.")
    fields = {key.removeprefix("cost."): value for key, value in chosen.items() if key.startswith("cost.")}
    from lufjax.results import cost, plots, run_directory

    model = run_directory.run_cost(options.run) if chosen.get("cost") is None else cost.load_cost(str(chosen["cost"]))
    prices = asdict(model)
    model = cost.cost_from_fields(prices.pop("name"), prices | fields)
    for path in plots.plot_run(Path(options.run), model):
        print(path)
    return 0


def _report(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax report", description="Write report.md of a run again.")
    parser.add_argument("run", help="a run directory")
    options = parser.parse_args(arguments)
    from lufjax.results import report

    print(report.write_report(Path(options.run)))
    return 0


def _compare(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax compare", description="What differs between two runs.")
    parser.add_argument("run_a", help="a run directory")
    parser.add_argument("run_b", help="a run directory")
    options = parser.parse_args(arguments)
    from lufjax.results import compare

    print(compare.compare_runs(Path(options.run_a), Path(options.run_b)))
    return 0


def _bench(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax bench", description="Measure speed, compile time and memory.")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, for example device=cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_intermixed_args(arguments)
    from lufjax.provenance import refuse_broken_jax

    refuse_broken_jax()
    chosen = {**_pairs(options.overrides), "json": options.json}
    from lufjax.benchmark import bench

    return bench.main(chosen)


def _import_trace(arguments: list[str]) -> int:
    parser = OneLineParser(prog="lufjax import-trace", description="Import the output of valgrind --tool=lackey --trace-mem=yes.")
    parser.add_argument("input", help="text file, - for standard input")
    parser.add_argument("output", help="NetCDF file to write")
    options = parser.parse_args(arguments)
    from lufjax.workloads import lackey

    lackey.import_lackey(options.input, options.output)
    print(options.output)
    return 0


def _rules(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Rules that ``policy.RULE=VALUE`` arguments replace."""
    return {key.removeprefix("policy."): value for key, value in chosen.items() if key.startswith("policy.")}


def _policy_of(chosen: Mapping[str, Any], example: str) -> tuple[str, dict[str, Any]]:
    """The policy that a command has to be given, as in ``example``, and all its rules by word."""
    from lufjax.presets import policy_words

    if "policy" not in chosen:
        raise ValueError(f"policy: missing; as in lufjax {example}")
    return str(chosen["policy"]), policy_words(str(chosen["policy"]), _rules(chosen))


def _pairs(overrides: Sequence[str], allowed: Sequence[str] | None = None, prefix: str = "") -> dict[str, Any]:
    """``key=value`` arguments as a dict, values read as YAML."""
    import yaml

    found = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text}: expected KEY=VALUE")
        if allowed is not None and key not in allowed and not (prefix and key.startswith(prefix)):
            raise ValueError(f"{text}: no such key; allowed are {', '.join(allowed)}, {prefix}FIELD")
        found[key] = yaml.safe_load(value)
    return found


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "scenario": _scenario,
    "matrix": _matrix,
    "explore": _explore,
    "ablate": _ablate,
    "litmus": _litmus,
    "policy": _policy,
    "workload": _workload,
    "plot": _plot,
    "report": _report,
    "compare": _compare,
    "bench": _bench,
    "import-trace": _import_trace,
}

if __name__ == "__main__":
    sys.exit(main())
