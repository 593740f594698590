"""Builds the CPU kernels and ``driver.cpp``, which calls them, as a program without Python, and runs it.

``python -m cpu_alone MODE ...`` does so for every type and activation; tests take few of them, to save time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["MODES", "build", "missing", "run"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "build" / "cpu_alone"


class Mode(NamedTuple):
    """How the kernels under test, of vectors of 16 bytes, are compiled; the scalar ones beside them are plain."""

    compiler: str
    flags: str
    sanitizer: str = ""
    emulator: str = ""


MODES = {
    "asan": Mode("g++", "-O1 -g1 -fopenmp", "-fsanitize=address,undefined -fno-sanitize-recover=all"),
    "tsan": Mode("g++", "-O1 -g1 -fopenmp", "-fsanitize=thread"),
    "neon": Mode("aarch64-linux-gnu-g++", "-O2 -fopenmp", "", "qemu-aarch64-static"),
}
COMMON = "-std=c++17 -fno-math-errno -Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized"
# Of the units of csrc/cpu those that are not for one instruction set and not without Python.
OTHER_UNITS = ("bindings", "isa", "prepared_convs", "tensor_memory", "training_block", "workspace")
# The types and activations that a build of few types leaves out of dispatch.h.
LEFT_OUT = ("float64", "float16", "leaky_relu", "relu6", "hardswish", "gelu")
# A source file, a text that it has once, and what stands there instead.
Patch = tuple[str, str, str]
# By the name of a source file, texts that it has once and what stands there instead.
Edits = dict[str, list[tuple[str, str]]]


def missing(mode: str) -> str | None:
    """What a build or run here would lack, or None."""
    needed = [name for name in (MODES[mode].compiler, MODES[mode].emulator) if name]
    absent = [name for name in needed if shutil.which(name) is None]
    return f"not verified here for lack of {' and '.join(absent)}" if absent else None


def build(mode: str, few_types: bool = False, patch: Patch | None = None) -> Path:
    """The program. ``few_types`` leaves most types and activations out; ``patch`` is planted into a kernel's source."""
    folder = FOLDER / f"{mode}{'-few' if few_types else ''}"
    edits: Edits = {}
    if few_types:
        cases = (ROOT / "csrc" / "cpu" / "dispatch.h").read_text().splitlines()
        edits["dispatch.h"] = [(c, "") for c in cases if any(f"::{name}: return" in c for name in LEFT_OUT)]
    scalar = _scalar_objects(MODES[mode].compiler, few_types, edits)
    if patch is None:
        _ninja(MODES[mode], folder, edits, _tested_units(MODES[mode], folder, few_types), scalar)
        return folder / "driver"
    sound = build(mode, few_types).parent
    planted, unit = sound / "planted", patch[0].replace(".cpp", ".o")
    units = _tested_units(MODES[mode], planted, few_types)
    others = [sound / name for name in units if name != unit]
    _ninja(MODES[mode], planted, edits | {patch[0]: [patch[1:]]}, {unit: units[unit]}, [*others, *scalar])
    return planted / "driver"


def run(mode: str, program: Path) -> subprocess.CompletedProcess[str]:
    """Runs it; the exit code is 0 where all results are right and no sanitizer has anything to say."""
    emulator = [MODES[mode].emulator] if MODES[mode].emulator else []
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    return subprocess.run(
        [*emulator, str(program)], env=os.environ | options, capture_output=True, text=True, check=False
    )


def _scalar_objects(compiler: str, few_types: bool, edits: Edits) -> list[Path]:
    """What the kernels under test are compared with, compiled once for all modes of a compiler."""
    folder = FOLDER / f"scalar-{compiler}{'-few' if few_types else ''}"
    plain = Mode(compiler, "-O1 -fopenmp -DFUSED_RESNET_TARGET=baseline -DFUSED_RESNET_VECTOR_BYTES=0")
    units = {f"scalar_{name}.o": (folder / "csrc" / "cpu" / f"{name}.cpp", plain.flags) for name in _kernels()}
    _ninja(plain, folder, edits, units)
    return [folder / name for name in units]


def _copy_sources(folder: Path, edits: Edits) -> None:
    """csrc without csrc/cuda, edited, written only where it changes: ninja looks at the time."""
    for source in (*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / "cpu").iterdir()):
        text = source.read_text()
        for before, after in edits.get(source.name, ()):
            if text.count(before) != 1:
                raise ValueError(f"{source.name}: expected once, found {text.count(before)} times: {before!r}")
            text = text.replace(before, after)
        copy = folder / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)


def _kernels() -> list[str]:
    """The units of csrc/cpu that are compiled for each instruction set."""
    return sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if path.stem not in OTHER_UNITS)


def _tested_units(mode: Mode, folder: Path, few_types: bool) -> dict[str, tuple[Path, str]]:
    """Each object's source and flags."""
    common = f"{mode.flags} {mode.sanitizer}"
    tested = f"{common} -DFUSED_RESNET_TARGET=vector16 -DFUSED_RESNET_VECTOR_BYTES=16"
    driver = f"{common} -DFUSED_RESNET_TARGET=driver -DTESTED=vector16"
    units = {"driver.o": (HERE / "driver.cpp", f"{driver} -DFEW_TYPES" if few_types else driver)}
    for name in ("workspace", *_kernels()):
        units[f"{name}.o"] = (folder / "csrc" / "cpu" / f"{name}.cpp", tested)
    return units


def _ninja(
    mode: Mode,
    folder: Path,
    edits: Edits,
    units: Mapping[str, tuple[Path, str]],
    objects: Iterable[Path] | None = None,
) -> None:
    """Compiles the units from edited sources; with finished objects, if only an empty list, links the driver."""
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer

    command = [shutil.which("ninja", path=BIN_DIR) or "ninja", "-C", str(folder), "-j2"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        _copy_sources(folder, edits)
        with (folder / "build.ninja").open("w") as file:
            n = Writer(file, width=120)
            compiler = f"{mode.compiler} {COMMON} $flags"
            n.rule("compile", f"{compiler} -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
            static = "-static" if mode.emulator else ""
            n.rule("link", f"{mode.compiler} {mode.flags} {mode.sanitizer} {static} $in -o $out")
            for target, (source, flags) in units.items():
                n.build([target], "compile", [str(source)], variables={"flags": flags})
            if objects is not None:
                n.build(["driver"], "link", [*units, *map(str, objects)])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"build of {folder} failed:\n{done.stdout[-4000:]}{done.stderr}")
