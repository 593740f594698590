"""What a benchmark is asked to measure, checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .variants import VARIANTS, default_variants

__all__ = [
    "ALLOCATORS",
    "DEFAULT_BATCHES",
    "DEVICES",
    "DTYPES",
    "MODES",
    "Job",
    "Settings",
    "available_cores",
    "check_known",
]

MODES = ("train", "infer")
DEVICES = ("cpu", "cuda")

# Environment of a child process. glibc gives large blocks back to the system and pays page faults for them in each
# step; "tuned" makes it keep them.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "1000000000000",
        "MALLOC_TOP_PAD_": "268435456",
    },
}
DEFAULT_BATCHES = {"resnet18": 32, "resnet50": 16}
OTHER_BATCH = 16


class DType(NamedTuple):
    """A working type, and the relative L2 errors that are fine in it however little stock PyTorch's variants differ.

    Rounding flips the ReLUs that are close to zero, a share of them in the order of its relative size, and each flip
    changes gradients at once: their error is in the order of the square root of that of the logits. With random weights
    stock channels_last and contiguous differ in fp32 by 1e-2 for ResNet-18 and 4e-2 for ResNet-50.
    """

    torch_name: str
    outputs: float  # logits and loss
    gradients: float


DTYPES = {
    "fp32": DType("float32", 1e-3, 1e-1),
    "fp64": DType("float64", 1e-9, 1e-5),
    "bf16": DType("bfloat16", 5e-2, 2e-1),
    "fp16": DType("float16", 1e-2, 2e-1),
}


class Job(NamedTuple):
    """All that one child process needs to know."""

    model: str
    variant: str
    mode: str
    batch: int
    image_size: int
    dtype: str
    device: str
    threads: int
    seed: int


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """A whole benchmark. Raises ValueError or ImportError for what cannot be run: what was expected and what came."""

    models: Sequence[str] = tuple(DEFAULT_BATCHES)
    mode: str = "train"
    batch: int | None = None  # None: DEFAULT_BATCHES, else OTHER_BATCH
    image_size: int = 224
    threads: int | None = None  # None: the available cores
    dtype: str = "fp32"
    device: str = "cpu"
    variants: Sequence[str] | None = None  # None: default_variants, those that are installed
    allocators: Sequence[str] = tuple(ALLOCATORS)
    rounds: int = 5
    minutes: float | None = None  # share out that long among models and allocators, at one round each or more
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("batch", "image_size", "threads", "rounds"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: expected at least 1, got {value}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes: expected more than 0, got {self.minutes}")
        for field, table in (("mode", MODES), ("dtype", DTYPES), ("device", DEVICES)):
            check_known(field, [getattr(self, field)], table)
        check_known("variant", self.compared, VARIANTS)
        for variant in self.compared:
            refusal = VARIANTS[variant].refusal(self.mode, self.dtype, self.device)
            if refusal:
                raise refusal
        check_known("allocator", self.allocators, ALLOCATORS)
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ValueError("device: expected cpu, got cuda, but torch finds no CUDA device on this machine")
        from ..models.registry import find_model

        for model in self.models:
            find_model(model)

    @property
    def compared(self) -> Sequence[str]:
        """The variants to compare, by name."""
        return self._defaults[0] if self.variants is None else self.variants

    @property
    def left_out(self) -> dict[str, str]:
        """Why a default variant does not take part, by its name; empty where the variants were chosen."""
        return self._defaults[1] if self.variants is None else {}

    @property
    def _defaults(self) -> tuple[list[str], dict[str, str]]:
        return default_variants(self.mode, self.dtype, self.device)

    def job(self, model: str, variant: str) -> Job:
        """What the child process of a variant has to know."""
        batch = self.batch or DEFAULT_BATCHES.get(model, OTHER_BATCH)
        threads = self.threads or available_cores()
        return Job(
            model, variant, self.mode, batch, self.image_size, self.dtype, self.device, threads=threads, seed=self.seed
        )


def check_known(field: str, names: Iterable[str], known: Mapping[str, object] | Sequence[str]) -> None:
    """Raises ValueError unless ``names`` are distinct, one at least, and all of them in ``known``."""
    names = list(names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{field}: expected distinct names of {', '.join(known)}, got {', '.join(names) or 'none'}")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {field} {name!r}; known: {', '.join(known)}")
