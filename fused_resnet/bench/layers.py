"""The benchmark of single convolutions: each distinct one of a model, ours and stock PyTorch's, pass by pass.

As in :mod:`.runner` a parent computes nothing, and the forms take turns; here one child process holds them all. It
keeps freed memory ("tuned" allocator), so that page faults for outputs do not stand in the kernels' times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import environment
from .child import BenchError, Child
from .geometry import OURS, PASSES, STOCK, Layer, convolutions
from .result import BenchResult
from .settings import Job, Settings
from .summary import quantiles, speedup_vs_best_stock, turn_order

__all__ = ["layer_row", "layer_settings", "run_layers"]

WORKER = (sys.executable, "-m", "fused_resnet.bench.layer_worker")
ALLOCATOR = "tuned"
MAX_ERROR = 1e-4  # relative, in fp32: of sums over 1e5 products, and of Winograd's transforms, it is below 1e-5

Progress = Callable[[str, int, int], None]  # as in :mod:`.runner`


def layer_settings(**fields: Any) -> Settings:
    """Settings for :func:`run_layers`, which has no mode, variants and allocators.

    Raises ValueError or ImportError for what cannot be run.
    """
    settings = Settings(**fields, variants=("fused",), allocators=(ALLOCATOR,))
    for field, expected in (("dtype", "fp32"), ("device", "cpu")):
        got = getattr(settings, field)
        if got != expected:
            raise ValueError(f"layers: expected {field} {expected}, got {got}")
    return settings


def run_layers(
    settings: Settings, progress: Progress | None = None, on_rows: Callable[[BenchResult], None] | None = None
) -> BenchResult:
    """Times each distinct convolution of the models: rows as of :func:`layer_row`.

    ``on_rows`` is called with the result so far when it grows. Ctrl-C ends the run: the rows so far are returned,
    marked ``interrupted``. Raises BenchError where something fails, or computes something else than stock PyTorch.
    """
    result = BenchResult(environment=environment.request(settings) | {"multiply_add_peak_flop_per_s": {}})
    try:
        jobs = [settings.job(model, "layers") for model in settings.models]
        found = {job: convolutions(job.model, job.batch, job.image_size) for job in jobs}
        total = sum(map(len, found.values())) * len(PASSES)
        for job, layers in found.items():
            with Child(job, ALLOCATOR, WORKER) as child:
                child.name = f"{job.model}, layers"
                result.environment |= child.receive()
                peak = child.ask("peak")["flop_per_s"]
                result.environment["multiply_add_peak_flop_per_s"][job.model] = peak
                for layer, count in layers.items():
                    for pass_name in PASSES:
                        child.name = f"{job.model}, {layer.text}, {pass_name}"
                        if progress:
                            progress(child.name, len(result.rows), total)
                        algorithm, rounds = _measure(child, layer, pass_name, settings.rounds)
                        result.rows.append(layer_row(job, layer, count, pass_name, rounds, peak, algorithm))
                        if on_rows:
                            on_rows(result)
    except KeyboardInterrupt:
        result.interrupted = True
        if on_rows:
            on_rows(result)
    return result


def layer_row(
    job: Job,
    layer: Layer,
    count: int,
    pass_name: str,
    rounds: Sequence[Mapping[str, float]],  # of each round: ms by form
    peak: float,  # FLOP/s
    algorithm: str,
) -> dict[str, Any]:
    """A row of the result.

    Stock is the layout with the smaller median; ``speedup_vs_stock`` is the median over rounds of its time ÷ ours.
    Rates and percentages are of the medians; they count direct arithmetic, so an algorithm that needs less of it may
    exceed 100.
    """
    times_ms = {form: quantiles([times[form] for times in rounds]) for form in (OURS, *STOCK)}
    stock = min(STOCK, key=lambda form: times_ms[form]["median"])
    rate, stock_rate = (layer.flop / (times_ms[form]["median"] * 1e-3) for form in (OURS, stock))
    fields = {name: value for name, value in layer._asdict().items() if name != "N"}
    return {
        "model": job.model,
        "batch": job.batch,
        "image_size": job.image_size,
        "dtype": job.dtype,
        "threads": job.threads,
        "layer": layer.text,
        "count": count,
        **fields,
        "pass": pass_name,
        "ms": times_ms[OURS],
        "stock_ms": times_ms[stock],
        "stock_layout": stock,
        "gflop_per_s": rate / 1e9,
        "stock_gflop_per_s": stock_rate / 1e9,
        "percent_of_peak": 100 * rate / peak,
        "stock_percent_of_peak": 100 * stock_rate / peak,
        "speedup_vs_stock": speedup_vs_best_stock(rounds, OURS, [stock]),
        "algorithm": algorithm,
    }


def _measure(child: Child, layer: Layer, pass_name: str, count: int) -> tuple[str, list[dict[str, float]]]:
    """The algorithm of ours, and of each round the ms by form; BenchError where a form is wrong."""
    ready = child.ask("prepare", layer=layer._asdict(), pass_name=pass_name)
    for form, error in ready["relative_errors"].items():
        if not error <= MAX_ERROR:  # NaN too
            raise BenchError(
                f"{child.name}: {form} computes something else than stock PyTorch: "
                f"relative error {error:.2e}, expected at most {MAX_ERROR:.0e}; it was not timed"
            )
    forms = (OURS, *STOCK)
    orders = ([forms[place] for place in turn_order(len(forms), index)] for index in range(count))
    return ready["algorithm"], [child.ask("measure", order=order) for order in orders]
