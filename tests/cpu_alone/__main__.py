"""``python -m cpu_alone MODE ...``: builds and runs the driver for every type and activation."""

from __future__ import annotations

import sys

from cpu_alone import build

for mode in sys.argv[1:]:
    if reason := build.missing(mode):
        sys.exit(f"{mode}: {reason}")
    done = build.run(mode, build.build(mode))
    print(f"{mode}: {done.stdout}{done.stderr}", end="")
    if done.returncode:
        sys.exit(done.returncode)
