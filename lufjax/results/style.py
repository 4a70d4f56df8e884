"""How policies, payers and axes look: fixed per name, colour-blind safe (Okabe-Ito), told apart by marker and dash as well."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.style import use as use_style

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C",
)  # fmt: skip
UNSAFE_MARK = "\u2020"
UNSAFE_NOTE = f"{UNSAFE_MARK} hollow marker: let a violation through in this run"
DECADES = 5
"""A symlog axis shows at most this many decades; what is smaller lies in its linear part."""


class PolicyStyle(NamedTuple):
    """Colour, marker and dash of a policy's line."""

    color: str
    marker: str
    dash: Any


SOLID, DASHED, DOTTED, DASHDOT = "-", (0, (4, 1.5)), (0, (1, 1.3)), (0, (5, 1.3, 1, 1.3))
PRESETS: dict[str, PolicyStyle] = {
    "never": PolicyStyle(GREY, "X", DOTTED),
    "eager": PolicyStyle(PURPLE, "s", DASHED),
    "linux": PolicyStyle(BLACK, "o", SOLID),
    "linux_6_15": PolicyStyle(BLACK, "p", DASHED),
    "luf_naive": PolicyStyle(VERMILLION, "v", DASHDOT),
    "luf_vma_flag": PolicyStyle(ORANGE, "^", SOLID),
    "luf_pte_marker": PolicyStyle(SKY, "<", DASHED),
    "luf_v10": PolicyStyle(BLUE, "D", SOLID),
    "luf_v10_as_posted": PolicyStyle(BLUE, "d", DOTTED),
    "luf_v11": PolicyStyle(BLUE, "*", DASHED),
    "luf_v12": PolicyStyle(SKY, "H", SOLID),
    "luf_always": PolicyStyle(ORANGE, ">", DASHDOT),
    "fpr": PolicyStyle(GREEN, "P", SOLID),
    "latr": PolicyStyle(GREEN, "h", DASHDOT),
}
"""Style of each preset, in the order of legends."""
_OTHERS = [
    PolicyStyle(c, m, d)
    for d in (DASHED, DOTTED)
    for c, m in zip((VERMILLION, BLUE, ORANGE, PURPLE, SKY, BLACK, GREY), "d*>8H1+", strict=True)
]
PAYERS: dict[str, tuple[str, str, str]] = {
    "ipi_reclaim": ("reclaim", BLUE, ""),
    "ipi_mapping": ("mapping calls", ORANGE, "////"),
    "ipi_fault": ("page faults", PURPLE, "...."),
    "ipi_alloc": ("allocation", GREEN, "xxxx"),
}
"""Counter of each payer of interrupts: label, colour, hatch."""
PARTS: dict[str, tuple[str, str, str]] = {
    "initiator": ("initiator", BLUE, ""),
    "responder": ("responders", ORANGE, "////"),
    "refill": ("refill", GREEN, "xxxx"),
}
"""Component of the time lost: label, colour, hatch."""


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib settings of every figure, whatever the user's own are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        use_style(str(Path(__file__).with_name("style.mplstyle")))
        yield


def in_order(policies: Sequence[str]) -> list[str]:
    """Presets first, in their fixed order, then others by name."""
    rank = {name: i for i, name in enumerate(PRESETS)}
    return sorted(policies, key=lambda name: (rank.get(name, len(rank)), name))


def policy_styles(policies: Sequence[str]) -> dict[str, PolicyStyle]:
    """Style of each policy: that of the preset, or one chosen by the name's checksum (the next free one if it is taken)."""
    styles: dict[str, PolicyStyle] = {}
    for name in in_order(policies):
        if name in PRESETS:
            styles[name] = PRESETS[name]
            continue
        start = zlib.crc32(name.encode()) % len(_OTHERS)
        ring = _OTHERS[start:] + _OTHERS[:start]
        styles[name] = next((s for s in ring if s not in styles.values()), ring[0])
    return styles


def label(policy: str, unsafe: Sequence[str]) -> str:
    """Name of a policy, with a dagger if it let a violation through."""
    return f"{policy} {UNSAFE_MARK}" if policy in unsafe else policy


def cpu_axis(ax: Axes, counts: Sequence[int]) -> None:
    """Log2 axis with ticks exactly at the measured CPU counts."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(counts), labels=[str(c) for c in counts])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_xlim(min(counts) / 1.35, max(counts) * 1.35)


def magnitude_axis(axes: Sequence[Axes], values: np.ndarray) -> None:
    """y axis of amounts: linear from 0 if they span less than a factor of 30, else symlog, with a linear strip so that 0 has a place."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    top = positive.max() if positive.size else 1.0
    lowest = min(0.0, finite.min()) if finite.size else 0.0
    if not positive.size or positive.min() * 30 > top:
        for ax in axes:
            ax.set_ylim(min(0.0, 1.1 * lowest), 1.08 * top)
        return
    first = int(np.floor(np.log10(max(positive.min(), top * 10.0**-DECADES))))
    last = int(np.ceil(np.log10(top)))
    for ax in axes:
        ax.set_yscale("symlog", linthresh=10.0**first, linscale=0.45)
        ax.set_yticks([0.0, *(10.0**k for k in range(first, last + 1))], labels=["0", *(decade(k) for k in range(first, last + 1))])
        ax.yaxis.set_minor_locator(ticker.FixedLocator([m * 10.0**k for k in range(first, last) for m in range(2, 10)]))
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())
        ax.axhspan(0, 10.0**first, color="#F4F4F4", lw=0, zorder=0)
        ax.set_ylim(min(-0.06 * 10.0**first, 1.3 * lowest), min(10.0**last, top * 1.6))


def reduction_axis(axes: Sequence[Axes], remaining: np.ndarray) -> None:
    """y axis of reductions, drawn as what remains (1 - reduction) and labelled as reduction in percent, upside down.

    Linear if all of it lies between 10 % and 200 % of the baseline; else symlog in what remains, so that 90 and 99 % are told apart and
    100 % (nothing remains) has a place in the linear strip.
    """
    finite = remaining[np.isfinite(remaining)]
    positive = finite[finite > 0]
    if finite.size and finite.min() >= 0.1 and finite.max() <= 2:
        ticks: list[float] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
        strip, top, bottom = None, 0.0, max(1.06, 1.05 * finite.max())
    else:
        first = int(np.floor(np.log10(max(positive.min(), 10.0**-DECADES)))) if positive.size else -1
        last = int(np.ceil(np.log10(max(finite.max(), 1.0)))) if finite.size else 0
        strip = 10.0 ** min(first, -1)
        ticks = [0.0, 0.5, *(10.0**k for k in range(min(first, -1), last + 1))]
        ticks = sorted([*ticks, 2.0] if finite.size and finite.max() > 1.5 else ticks)
        top, bottom = -0.3 * strip, max(1.25, 1.35 * finite.max()) if finite.size else 1.25
    for ax in axes:
        if strip:
            ax.set_yscale("symlog", linthresh=strip, linscale=0.4)
            ax.axhspan(top, strip, color="#F4F4F4", lw=0, zorder=0)
        shown = [t for t in ticks if t <= bottom]
        ax.set_yticks(shown, labels=[f"{100 * (1 - t):,.4g}".replace("-", "\u2212") for t in shown])
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        ax.axhline(1, color="#404040", lw=0.7, zorder=1)
        ax.set_ylim(bottom, top)


def decade(exponent: int) -> str:
    """Tick label of a power of ten: plain from 0.01 to 1,000, an exponent outside."""
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:,.{max(-exponent, 0)}f}"
    return f"$10^{{{exponent}}}$"


def short(value: float) -> str:
    """A number in three digits or so: 0, 0.042, 3.1, 420, 12k, 3.4M."""
    if not np.isfinite(value):
        return "missing"
    for limit, divisor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
