"""What presets there are, as text for people."""

from __future__ import annotations

from lufjax.presets import about_preset, load_preset, policy_words, preset_names


def policy_list() -> str:
    """Every policy preset with the first line of its file."""
    return _about("policy")


def workload_list() -> str:
    """Every workload preset with the first line of its file."""
    return _about("workload")


def policy_show(entry: str) -> str:
    """Every rule of one policy."""
    return _columns([(rule, str(word)) for rule, word in policy_words(entry).items()])


def policy_diff(a: str, b: str) -> str:
    """Rules of two policies side by side, those that differ marked and first."""
    left, right = policy_words(a), policy_words(b)
    rows = [("  rule", a, b)]
    rows += [(f"* {rule}", str(left[rule]), str(right[rule])) for rule in left if left[rule] != right[rule]]
    rows += [(f"  {rule}", str(left[rule]), str(right[rule])) for rule in left if left[rule] == right[rule]]
    return _columns(rows)


def _about(group: str) -> str:
    for name in preset_names(group):
        load_preset(group, name)
    return _columns([(name, about_preset(group, name)) for name in preset_names(group)])


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
