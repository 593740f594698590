"""Fuses every model of timm's residual families, against stock in float64, and prints a table: ``make sweep``."""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence

import torch
from support.timm_models import FAMILIES, Outcome, architectures, check

__all__ = ["main", "table"]

COLUMNS = (
    "module, architectures",
    "with batch norm",
    "something fuses",
    "blocks fused, partly, left",
    "largest error, train",
    "eval",
)


def main(families: Sequence[str]) -> int:
    """The exit code: 0 where every model matches its stock twin."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    failures = 0
    for family in families:
        for name in architectures(family):
            try:
                outcomes[family].append(check(name))
            except Exception as error:  # whatever it is, the sweep goes on
                failures += 1
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    print(table(outcomes))
    return int(failures > 0)


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """A row for each family, in Markdown; models without a batch norm are counted apart."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for family, found in outcomes.items():
        normed = [o for o in found if o.batch_norms]
        fused = sum(o.fused + o.partial > 0 for o in normed)
        counts = (sum(o[i] for o in normed) for i in range(3))
        errors = (f"{max((o.errors[mode] for o in found), default=0.0):.0e}" for mode in ("train", "eval"))
        cells = (f"{family}, {len(found)}", len(normed), fused, ", ".join(map(str, counts)), *errors)
        lines.append(tuple(map(str, cells)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or FAMILIES))
