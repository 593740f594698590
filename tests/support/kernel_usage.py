"""What nvcc made of each kernel: registers, stack, shared memory and the instructions that move data, by architecture.

It is read from the built module with ``cuobjdump``; nothing is compiled and no GPU is needed. Predicted occupancy is
the number of warps that a multiprocessor can hold, by NVIDIA's occupancy rules.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

__all__ = ["ARCHITECTURES", "Usage", "count_instructions", "demangle", "find_cuobjdump", "read_usage", "short_name"]


KEPT_SHARED_BYTES = 1024  # of each block, by the system


class Multiprocessor(NamedTuple):
    """Limits of one multiprocessor: warps, blocks and bytes of shared memory (CUDA programming guide, table of
    compute capabilities). All have 65,536 registers, given out by 256 a warp, and keep 1 KiB of shared memory a block,
    so that a block can have all but that.
    """

    warps: int
    blocks: int
    shared_bytes: int

    @property
    def block_shared_bytes(self) -> int:
        return self.shared_bytes - KEPT_SHARED_BYTES


ARCHITECTURES = {
    "80": Multiprocessor(64, 32, 164 << 10),
    "86": Multiprocessor(48, 16, 100 << 10),
    "89": Multiprocessor(48, 24, 100 << 10),
    "90": Multiprocessor(64, 32, 228 << 10),
    "100": Multiprocessor(64, 32, 228 << 10),
    "120": Multiprocessor(48, 24, 100 << 10),
}


class Usage(NamedTuple):
    """One kernel on one architecture."""

    registers: int  # of a thread
    stack_bytes: int  # of a thread; a spill shows here too
    static_shared_bytes: int  # of a block, without what the system keeps
    local: int  # instructions that read or write the stack
    vector_loads: int  # of 16 bytes from global memory, to registers
    scalar_loads: int  # of fewer bytes
    vector_stores: int
    scalar_stores: int
    async_copies: int  # from global to shared memory, of 16 bytes
    tensor_core: int

    def warps(self, architecture: str, threads: int, dynamic_shared_bytes: int) -> int:
        """Warps that a multiprocessor holds at once when a block has this many threads; 0 where none fits."""
        limits, warps = ARCHITECTURES[architecture], -(-threads // 32)
        registers_per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = 65536 // 4 // registers_per_warp * 4 // warps  # each of four partitions has its own
        shared = self.static_shared_bytes + dynamic_shared_bytes
        if shared > limits.block_shared_bytes:
            return 0
        by_shared = limits.shared_bytes // (-(-(shared + KEPT_SHARED_BYTES) // 128) * 128)
        return min(by_registers, limits.warps // warps, limits.blocks, by_shared) * warps


# Counted by opcode, without the predicate before it.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z]\w*)((?:\.\w+)*)", re.MULTILINE)
_FUNCTION = re.compile(r"\n\s*Function : (\w+)\n")
_RESOURCES = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def find_cuobjdump() -> Path | None:
    """On PATH, beside nvcc, or in the wheel of Triton or of nvidia-cuda-cuobjdump."""
    packages = Path(sysconfig.get_path("purelib"))
    homes = [*packages.glob("triton/backends/nvidia/bin"), *packages.glob("nvidia/cu*/bin")]
    path = shutil.which("cuobjdump") or next((h / "cuobjdump" for h in homes if (h / "cuobjdump").exists()), None)
    return Path(path) if path else None


def read_usage(cuobjdump: Path, module: Path) -> dict[tuple[str, str], Usage]:
    """Usage by (architecture, kernel) of every kernel in a module, names demangled, two architectures at a time."""
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda arch: list(_read_architecture(cuobjdump, module, arch)), ARCHITECTURES)
        return {key: usage for part in parts for key, usage in part}


def _read_architecture(cuobjdump: Path, module: Path, arch: str) -> Iterator[tuple[tuple[str, str], Usage]]:
    def run(option: str) -> str:
        command = [str(cuobjdump), option, "-arch", f"sm_{arch}", str(module)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    kept = KEPT_SHARED_BYTES if int(arch) >= 90 else 0  # from there on it is counted where there is any
    resources = {
        name: (int(registers), int(stack), max(int(shared) - kept, 0))
        for name, registers, stack, shared in _RESOURCES.findall(run("-res-usage"))
    }
    pieces = _FUNCTION.split(run("-sass"))
    names = pieces[1::2]
    for mangled, name, body in zip(names, demangle(names), pieces[2::2], strict=True):
        yield (arch, name), Usage(*resources[mangled], *count_instructions(body))


def count_instructions(body: str) -> Iterator[int]:
    """The counts of :class:`Usage`, in its order from ``local`` on, of the disassembly of one kernel."""
    found = Counter((op, ".128" in suffixes) for op, suffixes in _INSTRUCTION.findall(body))
    yield sum(found[op, wide] for op in ("LDL", "STL") for wide in (True, False))
    for op in ("LDG", "STG"):
        yield found[op, True]
        # A generic access, of which the compiler could not tell that it is global, counts as scalar.
        yield found[op, False] + found[op.removesuffix("G"), True] + found[op.removesuffix("G"), False]
    yield found["LDGSTS", True]
    yield sum(n for (op, _), n in found.items() if op in ("HMMA", "QGMMA", "HGMMA"))


def demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [short_name(line) for line in done.stdout.splitlines()]


def short_name(name: str) -> str:
    """Without return type, parameters, namespaces and blanks."""
    name = re.sub(r"\(anonymous namespace\)::|fused_resnet::|conv::", "", name)
    for number, arithmetic in enumerate(("tensor_core", "fma")):  # of enum class Arithmetic
        name = name.replace(f"(Arithmetic){number}", arithmetic)
    name = re.sub(r"\((?:bool|int)\)(?=\d)", "", name)
    depth, end = 0, len(name)
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = i
            break
    return name[:end].removeprefix("void ").replace(" ", "")
