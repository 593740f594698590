"""The gate's command line: exit code 0 only if every kernel compiles and keeps its budget."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from .budget import BUDGET, breaches, budget_text, widest
from .driver import TARGETS
from .matrix import compile_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="triton_gate", description=__doc__)
    parser.add_argument("--target", action="append", choices=TARGETS, help="these alone")
    parser.add_argument("--in-turn", action="store_true", help="each case for one target alone")
    parser.add_argument("--json", type=Path, help="write a row a kernel here")
    parser.add_argument("--write-budget", action="store_true", help="make what was found the budget")
    arguments = parser.parse_args()
    if arguments.write_budget and (arguments.target or arguments.in_turn):
        parser.error("--write-budget: expected every case for every target, got --target or --in-turn beside it")
    start, targets = time.perf_counter(), arguments.target or tuple(TARGETS)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        every = repeat(len(TARGETS) if arguments.in_turn else 1)
        rows = [row for found in pool.map(compile_all, targets, every) for row in found]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.write_budget:
        BUDGET.write_text(budget_text(widest(rows)))
    found = [breach for row in rows for breach in breaches(row)]
    print("\n".join(found))
    seconds = time.perf_counter() - start
    print(f"{len(rows)} cases of kernels for {', '.join(targets)} in {seconds:.0f} s: {len(found)} breaches")
    return 1 if found or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
