"""A profile as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .result import PHASES, VARIANTS, ProfileResult

__all__ = ["profile_table", "stages"]

MAX_ROWS = 8  # of operators and of kernels, of each variant
MAX_NAME = 36  # characters of a kernel
Row = dict[str, Any]


def profile_table(result: ProfileResult) -> Group:
    """Phases, blocks with their stages, operators, a GPU's kernels, memory, and what the measurement itself costs."""
    tables = [_phases(result), _blocks(result)]
    if result.ops:
        tables += [_ops(result, variant) for variant in VARIANTS]
    if result.kernels:
        tables += [_kernels(result, variant) for variant in VARIANTS]
    notes = [f"speedup of the step: {result.speedup:.2f}"]
    if result.memory:
        sizes = ", ".join(f"{v} {result.memory[v]['peak_bytes'] / 1e6:.0f} MB" for v in VARIANTS)
        notes.append(f"peak over the step, of memory allocated in it: {sizes}")
    for instrument, shares in result.overhead.items():
        costs = ", ".join(f"{variant} {share:+.1%}" for variant, share in shares.items())
        notes.append(f"a step with {instrument} took longer than a bare one by: {costs}")
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    return Group(f"{result.model}: {settings}", *tables, *notes)


def stages(blocks: Iterable[Row]) -> list[Row]:
    """The blocks of each stage as one row."""
    found: dict[str, Row] = {}
    for block in blocks:
        stage = found.setdefault(block["stage"], {"stage": block["stage"], **{v: {} for v in VARIANTS}})
        for variant in VARIANTS:
            for name, value in block[variant].items():
                stage[variant][name] = stage[variant].get(name, 0) + value
    return list(found.values())


def _phases(result: ProfileResult) -> Table:
    table = _table("a training step, ms", ["phase", *VARIANTS, "stock / fused"])
    for phase in (*PHASES, "step", "bare"):
        stock, fused = (result.steps[variant][phase] for variant in VARIANTS)
        name = {"step": "sum: the step", "bare": "bare step"}.get(phase, phase)
        table.add_row(name, f"{stock:.1f}", f"{fused:.1f}", f"{stock / fused:.2f}")
    return table


def _blocks(result: ProfileResult) -> Table:
    columns = ["block", "forward ms", "", "backward ms", "", "kept MB", "", "stock / fused"]
    table = _table("by stage and block, stock and fused", columns)
    for stage in stages(result.blocks):
        rows = [block for block in result.blocks if block["stage"] == stage["stage"]]
        if len(rows) > 1:
            table.add_row(f"{stage['stage']}, all", *_cells(stage), style="bold")
        for block in rows:
            table.add_row(block["block"], *_cells(block))
    return table


def _cells(row: Row) -> list[str]:
    stock, fused = (row[variant] for variant in VARIANTS)
    cells = [f"{side[name]:.1f}" for name in ("forward_ms", "backward_ms") for side in (stock, fused)]
    cells += [f"{side['kept_bytes'] / 1e6:.1f}" for side in (stock, fused)]
    times = [side["forward_ms"] + side["backward_ms"] for side in (stock, fused)]
    return [*cells, f"{times[0] / times[1]:.2f}" if times[1] else ""]


def _ops(result: ProfileResult, variant: str) -> Table:
    rows = [row for row in result.ops if row["variant"] == variant]
    total = sum(row["self_ms"] for row in rows)
    table = _table(
        f"operators of {variant}, by their own time under torch.profiler", ["operator", "kind", "calls", "ms", "%"]
    )
    for row in rows[:MAX_ROWS]:
        table.add_row(
            row["op"], row["kind"], str(row["calls"]), f"{row['self_ms']:.1f}", f"{100 * row['self_ms'] / total:.0f}"
        )
    return table


def _kernels(result: ProfileResult, variant: str) -> Table:
    total: dict[tuple[str, str], list[float]] = {}  # calls and ms, of all phases and blocks
    for row in result.kernels:
        if row["variant"] == variant:
            sums = total.setdefault((row["kernel"], row["op"]), [0, 0.0])
            sums[0] += row["calls"]
            sums[1] += row["ms"]
    whole = sum(ms for _, ms in total.values())
    table = _table(f"kernels of {variant}, under torch.profiler", ["kernel", "operator", "calls", "ms", "%"])
    table.columns[0].max_width, table.columns[0].no_wrap = MAX_NAME, True
    for (kernel, op), (calls, ms) in sorted(total.items(), key=lambda item: -item[1][1])[:MAX_ROWS]:
        table.add_row(Text(kernel), op, f"{calls:.0f}", f"{ms:.2f}", f"{100 * ms / whole:.0f}")
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table
