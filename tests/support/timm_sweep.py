"""Fuses every model of timm's residual families, against stock in float64, and prints a table: ``make sweep``.

Each outcome is kept in ``build/timm_sweep.jsonl`` at once, so that a sweep that was interrupted goes on where it was;
outcomes of other sources than the present ones do not count.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from support.timm_models import FAMILIES, Outcome, architectures, check

import fused_resnet

__all__ = ["main", "table"]

KEPT = Path("build/timm_sweep.jsonl")
SOURCES = ("backends", "fuse", "nn", "ops", "functional.py")  # of the package: what decides the outcome

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
    KEPT.parent.mkdir(exist_ok=True)
    sources = _sources()
    kept = _kept(sources)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    failures = 0
    for family in families:
        for name in architectures(family):
            if name not in kept:
                try:
                    kept[name] = check(name)
                except Exception as error:  # whatever it is, the sweep goes on
                    failures += 1
                    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                with KEPT.open("a") as file:
                    print(json.dumps({"sources": sources, "name": name, "outcome": kept[name]}), file=file)
            outcomes[family].append(kept[name])
    print(table(outcomes))
    return int(failures > 0)


def _sources() -> str:
    """A hash of what decides the outcomes."""
    package = Path(fused_resnet.__file__).parent
    files = sorted(file for name in SOURCES for file in (package / name, *(package / name).rglob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()[:16]


def _kept(sources: str) -> dict[str, Outcome]:
    """The outcomes that earlier runs have found with the same sources, by name."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["name"]: Outcome(*row["outcome"]) for row in rows if row["sources"] == sources}


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
