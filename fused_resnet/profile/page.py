"""A profile as one self-contained HTML page."""

from __future__ import annotations

from typing import Any

from ..report import Page
from ..report.page import Cell
from .result import PHASES, VARIANTS, ProfileResult
from .timeline import LEAST_MS

__all__ = ["profile_page"]

COLORS = {"stock": "--stock", "fused": "--own"}
INK = "#14181f"  # of numbers on the bars: legible on them in the light and in the dark
COLUMNS = (
    "block",
    "stage",
    "class",
    "stock ms",
    "fused ms",
    "stock / fused",
    "stock kept MB",
    "fused kept MB",
    "GFLOP",
)
BY_BLOCK = ("block", "phase", "operator", "variant", "calls", "ms")
KERNELS = ("block", "phase", "operator", "variant", "calls", "ms", "kernel")  # whose name may be long

OPERATORS_NOTE = (
    "Under torch.profiler, which slows both down. An operator counts with all that it calls; ours are one kernel each, "
    f"or two in backward. Those under {LEAST_MS} ms are left out."
)


def profile_page(result: ProfileResult) -> str:
    """The page. Raises ImportError without plotly."""
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    page = Page(f"{result.model}: a training step, stock beside fused", settings)
    page.cards(_cards(result))
    page.figure(
        "Step timeline", *_timeline(result), "Forward, backward and optimizer of the step of median length, in ms."
    )
    for variant in VARIANTS if result.timeline else ():
        page.figure(f"Operators over the step, {variant}", *_operators(result, variant), OPERATORS_NOTE)
    page.figure("Blocks", *_block_bars(result), "Forward and backward of each block together, in ms.")
    if result.memory:
        page.figure("Memory over the step", *_memory(result), "Allocated since the step began, under torch.profiler.")
    if any(block["stock"]["flop"] for block in result.blocks):
        page.figure("Roofline", *_roofline(result), _roof_note(result))
    page.table("Blocks, in numbers", COLUMNS, [_block_row(block) for block in result.blocks])
    if result.ops:
        rows = [
            (row["op"], row["variant"], row["kind"], Cell(str(row["calls"]), row["calls"]), _number(row["self_ms"], 2))
            for row in result.ops
        ]
        page.table("Operators", ("operator", "variant", "kind", "calls", "own ms"), rows, "Under torch.profiler.")
    if result.timeline:
        page.table("Operators by block", BY_BLOCK, _by_block(result), OPERATORS_NOTE)
    if result.kernels:
        page.table("Kernels", KERNELS, _kernels(result), "On the device, by the operator that launched them.")
    costs = {
        f"{instrument}, {variant}": f"{share:+.1%} of a bare step"
        for instrument, shares in result.overhead.items()
        for variant, share in shares.items()
    }
    page.facts("What measuring costs", costs)
    environment = dict(result.environment)
    command = environment.pop("command", "")
    page.facts("Environment", environment)
    if command:
        page.command(command)
    return page.html()


def _cards(result: ProfileResult) -> list[tuple[str, str, str]]:
    cards = [("speedup of the step", f"{result.speedup:.2f}", "stock ÷ fused")]
    cards += [
        (f"{v} step", f"{result.steps[v]['step']:.0f} ms", f"{result.steps[v]['bare']:.0f} ms bare") for v in VARIANTS
    ]
    kept = {v: sum(block[v]["kept_bytes"] for block in result.blocks) for v in VARIANTS}
    if kept["stock"]:
        share = f"{kept['fused'] / kept['stock']:.2f} of stock's {kept['stock'] / 1e6:.0f} MB"
        cards.append(("kept for backward", f"{kept['fused'] / 1e6:.0f} MB", share))
    if result.memory:
        peaks = {v: result.memory[v]["peak_bytes"] for v in VARIANTS}
        share = f"{peaks['fused'] / peaks['stock']:.2f} of stock's {peaks['stock'] / 1e6:.0f} MB"
        cards.append(("peak over the step", f"{peaks['fused'] / 1e6:.0f} MB", share))
    return cards


def _timeline(result: ProfileResult) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data = []
    alpha = {"forward": "", "backward": " b3", "optimizer": " 66"}  # hexadecimal, behind a name of the page's colors
    for phase in PHASES:
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": phase,
                "y": list(VARIANTS),
                "x": [result.steps[v][phase] for v in VARIANTS],
                "marker": {"color": [COLORS[v] + alpha[phase] for v in VARIANTS]},
                "texttemplate": "%{x:.1f}",
                "insidetextanchor": "middle",
                "insidetextfont": {"color": INK},
                "cliponaxis": False,
                "hovertemplate": f"%{{y}}, {phase}: %{{x:.2f}} ms<extra></extra>",
            }
        )
    return data, {
        "barmode": "stack",
        "height": 260,
        "xaxis": {"title": {"text": "ms"}},
        "yaxis": {"autorange": "reversed"},
    }


def _operators(result: ProfileResult, variant: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A lane for each kind of operator of either variant, the longest on top; dotted lines where a phase begins."""
    total: dict[str, float] = {}
    for row in result.timeline:
        total[row["kind"]] = total.get(row["kind"], 0.0) + row["ms"]
    lanes = sorted(total, key=lambda kind: total[kind])
    rows = [row for row in result.timeline if row["variant"] == variant]
    begins = {row["phase"]: row["start_ms"] for row in reversed(rows)}
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": variant,
        "y": [row["kind"] for row in rows],
        "base": [row["start_ms"] for row in rows],
        "x": [row["ms"] for row in rows],
        "customdata": [[row["op"], row["phase"], row["block"]] for row in rows],
        "marker": {"color": COLORS[variant]},
        "hovertemplate": "%{customdata[0]}, %{customdata[1]} %{customdata[2]}: %{value:.2f} ms<extra></extra>",
    }
    end = max(row["start_ms"] + row["ms"] for row in result.timeline)
    return [bars], {
        "barmode": "overlay",
        "height": 90 + 26 * len(lanes),
        "showlegend": False,
        "xaxis": {"title": {"text": "ms"}, "range": [0, end]},
        "yaxis": {"categoryorder": "array", "categoryarray": lanes},
        "shapes": [{**line, "x0": when, "x1": when} for when in begins.values()],
    }


def _by_block(result: ProfileResult) -> list[tuple[str | Cell, ...]]:
    total: dict[tuple[str, ...], list[float]] = {}
    for row in result.timeline:
        total.setdefault((row["block"], row["phase"], row["op"], row["variant"]), []).append(row["ms"])
    return [(*names, Cell(str(len(ms)), len(ms)), _number(sum(ms), 2)) for names, ms in total.items()]


def _kernels(result: ProfileResult) -> list[tuple[str | Cell, ...]]:
    return [
        (
            *(row[name] for name in ("block", "phase", "op", "variant")),
            Cell(str(row["calls"]), row["calls"]),
            _number(row["ms"], 3),
            row["kernel"],
        )
        for row in result.kernels
    ]


def _block_bars(result: ProfileResult) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    names = [block["block"] for block in result.blocks]
    data = [
        {
            "type": "bar",
            "name": variant,
            "x": names,
            "y": [_time(block[variant]) for block in result.blocks],
            "customdata": [[block[variant]["forward_ms"], block[variant]["backward_ms"]] for block in result.blocks],
            "marker": {"color": COLORS[variant]},
            "hovertemplate": "%{x}: forward %{customdata[0]:.2f} ms, backward %{customdata[1]:.2f} ms",
        }
        for variant in VARIANTS
    ]
    return data, {"barmode": "group", "height": 420, "yaxis": {"title": {"text": "ms"}}}


def _memory(result: ProfileResult) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data = []
    for variant, memory in result.memory.items():
        times, sizes = zip(*memory["curve"], strict=True) if memory["curve"] else ((), ())
        # From its beginning to its end: the profiler slows both down, by different amounts.
        share = [100 * t / times[-1] if times[-1] else 0.0 for t in times]
        megabytes = [size / 1e6 for size in sizes]
        line = {"shape": "hv", "color": COLORS[variant]}
        hover = "%{x:.0f} % of the step: %{y:.1f} MB"
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": variant,
                "x": share,
                "y": megabytes,
                "line": line,
                "hovertemplate": hover,
            }
        )
    return data, {"height": 380, "xaxis": {"title": {"text": "% of the step"}}, "yaxis": {"title": {"text": "MB"}}}


def _roofline(result: ProfileResult) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """FLOP/s over FLOP a byte, forward and backward together; fused computes stock's FLOP and moves its own bytes."""
    data: list[dict[str, Any]] = []
    intensities = []
    for variant in VARIANTS:
        rows = [b for b in result.blocks if b["stock"]["flop"] and _time(b[variant]) and b[variant]["moved_bytes"]]
        x = [block["stock"]["flop"] / block[variant]["moved_bytes"] for block in rows]
        y = [block["stock"]["flop"] / _time(block[variant]) / 1e6 for block in rows]
        intensities += x
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": variant,
                "x": x,
                "y": y,
                "text": [block["block"] for block in rows],
                "marker": {"color": COLORS[variant], "size": 9},
                "hovertemplate": "%{text}: %{x:.1f} FLOP a byte, %{y:.1f} GFLOP/s",
            }
        )
    peak, bandwidth = result.roof.get("flop_per_s"), result.roof.get("bytes_per_s")
    if intensities and bandwidth:
        ends = [min(intensities) / 2, max(intensities) * 2]
        if peak:
            ends = sorted([*ends, peak / bandwidth])
        roof = [min(peak or float("inf"), x * bandwidth) / 1e9 for x in ends]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "measured roof",
                "x": ends,
                "y": roof,
                "line": {"color": "--soft", "dash": "dot"},
            }
        )
    axes = {
        "xaxis": {"type": "log", "title": {"text": "FLOP a byte"}},
        "yaxis": {"type": "log", "title": {"text": "GFLOP/s"}},
    }
    return data, {"height": 420, **axes}


def _roof_note(result: ProfileResult) -> str:
    peak, bandwidth = result.roof.get("flop_per_s"), result.roof.get("bytes_per_s")
    parts = [f"{peak / 1e9:.0f} GFLOP/s of multiply-adds in fp32"] if peak else []
    parts += [f"{bandwidth / 1e9:.1f} GB/s of c = a + b"] if bandwidth else []
    measured = f" Measured: {' and '.join(parts)}." if parts else ""
    return (
        "Direct arithmetic over the bytes of each operator's tensors, read or written once. A point above the roof "
        f"computes less than direct arithmetic (Winograd) or in 16 bits, or reads from the caches.{measured}"
    )


def _block_row(block: dict[str, Any]) -> tuple[str | Cell, ...]:
    stock, fused = (block[variant] for variant in VARIANTS)
    times = [_time(side) for side in (stock, fused)]
    ratio = times[0] / times[1] if times[1] else None
    return (
        *(block["block"], block["stage"], block["class"]),
        *(_number(ms, 2) for ms in times),
        Cell("" if ratio is None else f"{ratio:.2f}", ratio),
        *(_number(side["kept_bytes"] / 1e6, 2) for side in (stock, fused)),
        _number(stock["flop"] / 1e9, 2),
    )


def _time(side: dict[str, float]) -> float:
    return side["forward_ms"] + side["backward_ms"]


def _number(value: float, digits: int) -> Cell:
    return Cell(f"{value:.{digits}f}", value)
