"""What a profile gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["PHASES", "VARIANTS", "ProfileResult"]

PHASES = ("forward", "backward", "optimizer")
VARIANTS = ("stock", "fused")

Row = dict[str, Any]


@dataclass
class ProfileResult:
    """A training step of a model, stock beside fused. Times are in milliseconds, all of the step of median length.

    ``steps``: by variant, of the phases, of the whole step (``step``), and the median of steps timed as a whole with no
    clock in them (``bare``). ``blocks``: a row for each block in order, with ``forward_ms``, ``backward_ms``, ``flop``,
    ``moved_bytes`` and ``kept_bytes`` by variant. ``ops``: a row for each operator and variant. ``timeline``: the
    operators of one step under torch.profiler, in order, each with ``kind``, ``phase``, ``block``, ``start_ms`` and
    ``ms``. ``kernels``: what a GPU ran in that step, a row for each ``kernel``, ``op`` that launched it, ``phase`` and
    ``block``, with ``calls`` and ``ms``; empty on a CPU. ``memory``: by variant, the bytes allocated during a step, as
    ``[ms, bytes]``, and their peak. ``overhead``: how much longer a step took than a bare one, by instrument and
    variant, as a share. ``trace`` is not part of :meth:`to_dict`.
    """

    model: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    blocks: list[Row] = field(default_factory=list)
    ops: list[Row] = field(default_factory=list)
    timeline: list[Row] = field(default_factory=list)
    kernels: list[Row] = field(default_factory=list)
    memory: dict[str, Row] = field(default_factory=dict)
    roof: dict[str, float | None] = field(default_factory=dict)
    overhead: dict[str, dict[str, float]] = field(default_factory=dict)
    interrupted: bool = False
    trace: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def speedup(self) -> float:
        """Stock's step time over that of fused."""
        return self.steps["stock"]["step"] / self.steps["fused"]["step"]

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return {name: value for name, value in asdict(self).items() if name != "trace"}

    def to_html(self) -> str:
        """One self-contained page. Raises ImportError without plotly."""
        from .page import profile_page

        return profile_page(self)

    def __str__(self) -> str:
        from rich.console import Console

        from .table import profile_table

        console = Console(width=120)
        with console.capture() as captured:
            console.print(profile_table(self))
        return captured.get()

    def _repr_html_(self) -> str:
        from ..report.page import framed

        return framed(self.to_html())
