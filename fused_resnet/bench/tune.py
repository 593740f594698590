"""``fused-resnet tune``: for each call of our ops in a model the fastest candidate here, kept in the tune file.

A candidate is a tile of ours, or whose kernel computes a convolution. Each must first compute what stock PyTorch does,
and one that fails, or computes something else, is left out and named.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backends, tune, use_backend
from ..backends.choices import tuned_choices
from ..models.registry import find_model
from . import environment
from .correctness import relative_error
from .device_time import median_ms
from .op_calls import op_calls
from .result import BenchResult
from .settings import DTYPES

__all__ = ["BACKENDS", "ROUNDS", "TuneSettings", "run_tune"]

BACKENDS = ("cuda", "triton")
ROUNDS = 20
_TUNED_DTYPES = ("fp32", "bf16", "fp16")

Progress = Callable[[str, int, int], None]  # as in :mod:`.runner`
Calls = Mapping[str, Callable[[], Any]]


class TuneSettings(NamedTuple):
    """What to tune, and for whom."""

    model: str
    batch: int
    image_size: int
    dtype: str
    backend: str
    training: bool
    rounds: int

    def check(self) -> torch.device:
        """The device to measure on; ValueError or ImportError for what cannot be run."""
        for field in ("batch", "image_size", "rounds"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: expected at least 1, got {getattr(self, field)}")
        if self.dtype not in _TUNED_DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(_TUNED_DTYPES)}")
        known = [backend for backend in backends().values() if backend.module in BACKENDS]
        backend = next((b for b in known if b.name == self.backend), None)
        if backend is None:
            raise ValueError(f"unknown backend {self.backend!r}; known: {', '.join(b.name for b in known)}")
        device = next((d for d in backend.devices if d != "cuda" or torch.cuda.is_available()), None)
        if backend.unavailable or device is None:
            raise ValueError(
                f"backend {self.backend!r} cannot be tuned here: {backend.unavailable or 'no CUDA device'}"
            )
        variable = f"FUSED_RESNET_{backend.module.upper()}_CONV"
        if os.environ.get(variable, "auto") not in ("", "auto"):
            raise ValueError(f"{variable}: expected auto, which leaves a choice, got {os.environ[variable]!r}")
        find_model(self.model)
        return torch.device(device)


def run_tune(
    settings: TuneSettings, progress: Progress | None = None, on_rows: Callable[[BenchResult], None] | None = None
) -> BenchResult:
    """Measures and keeps every choice of the model's calls: a row for each, with the milliseconds of all candidates.

    Each call's choices are stored as soon as they are made, so Ctrl-C keeps those so far: the result is then marked
    ``interrupted``. Raises BenchError for a model that cannot be tuned, RuntimeError where no candidate is right, and
    OSError where the tune file cannot be written.
    """
    device = settings.check()
    result = BenchResult(environment=environment.machine_facts(device.type) | {"tune_file": str(tune.tune_file())})
    calls = op_calls(settings.model, settings.batch, settings.image_size, settings.training)
    dtype = getattr(torch, DTYPES[settings.dtype].torch_name)
    try:
        for done, call in enumerate(calls):
            if progress:
                progress(f"{call.op} {call.text}", done, len(calls))
            with torch.no_grad(), use_backend(settings.backend):
                for op, function in call.functions(dtype, device, settings.training):
                    rows = _rows(op, function, device, settings, {row["key"]: row["chosen"] for row in result.rows})
                    result.rows += [{"op": op, "call": call.text, **row} for row in rows]
            if on_rows:
                on_rows(result)
    except KeyboardInterrupt:
        result.interrupted = True
    return result


def _rows(
    op: str, function: Callable[[], Any], device: torch.device, settings: TuneSettings, known: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Of the choices that ``function`` makes, but those ``known`` by key; they are stored."""
    bounds = DTYPES[settings.dtype]
    bound = bounds.gradients if op.endswith("_backward") else bounds.outputs
    with use_backend("reference"):
        expected = _tensors(function())
    left_out: dict[str, str] = {}

    def measure(candidates: Calls) -> dict[str, float]:
        refusals = {name: _refusal(call, expected, bound) for name, call in candidates.items()}
        left_out.update({name: reason for name, reason in refusals.items() if reason})
        right = {name: call for name, call in candidates.items() if not refusals[name]}
        return dict.fromkeys(candidates, math.inf) | median_ms(right, device, settings.rounds)

    rows, found = [], dict[str, str]()
    for slot, key, chosen, ms in tuned_choices(function, measure, known):
        finite = {name: value if math.isfinite(value) else None for name, value in ms.items()}
        found[key] = chosen
        why = {name: left_out[name] for name in ms if name in left_out}
        rows.append({"slot": slot, "chosen": chosen, "ms": finite, "left_out": why, "key": key})
    tune.store(found)
    return rows


def _refusal(call: Callable[[], Any], expected: list[Tensor], bound: float) -> str | None:
    """Why a candidate must not be chosen, or None."""
    try:
        found = _tensors(call())
    except Exception as error:  # of the compiler, the driver or PyTorch: whatever it is, this candidate has it
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    worst = max(relative_error([a], [b]) for a, b in zip(found, expected, strict=True))
    return None if worst <= bound else f"differs from PyTorch by {worst:.2g}, expected at most {bound:.2g}"


def _tensors(outputs: Any) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [o for o in outputs if o is not None and o.dtype.is_floating_point and o.numel()]
