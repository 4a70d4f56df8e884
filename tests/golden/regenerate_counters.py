"""Write ``counters.json``: everything that one tiny run counts.

Run from the root of the source tree: ``python -m tests.golden.regenerate_counters``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.contract.small_run import build_trace, flatten, small_run

FILE = Path(__file__).parent / "counters.json"
POLICIES = ("linux", "luf_v10", "latr")
NUM_EVENTS = 6000


def tiny_run() -> dict[str, Any]:
    """Numbers by policy and name, zeros left out; native."""
    trace = build_trace("churn", 3, 0, NUM_EVENTS, num_files=12, hot_pages=3)
    found = flatten(small_run([trace], POLICIES).samples())
    return {
        policy: {name: values[lane].tolist() for name, values in sorted(found.items()) if values[lane].any()}
        for lane, policy in enumerate(POLICIES)
    }


def dump(numbers: dict[str, Any]) -> str:
    """One line for each number, so that a change can be read."""
    lines = (
        f'  "{policy}": {{\n' + ",\n".join(f'    "{name}": {json.dumps(value)}' for name, value in found.items()) + "\n  }"
        for policy, found in numbers.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(dump(tiny_run()))
