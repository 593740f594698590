"""Builds the CUDA kernels, launchers and binding of csrc/cuda with g++ against the runtime in this folder.

``python tests/cuda_on_cpu/build.py plain FOLDER`` leaves ``FOLDER/_cuda.so``, which :func:`load` imports: the module
``fused_resnet._cuda``, running on the CPU. The modes are ``plain``, ``asan``, with UndefinedBehaviorSanitizer, and
``tsan``.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

__all__ = ["MODES", "build", "load", "missing", "preload", "toolkit_include"]

HERE = Path(__file__).resolve().parent
CUDA = HERE.parent.parent / "csrc" / "cuda"

# Flags of everything that is compiled, and of the runtime where it differs: to ThreadSanitizer it must be invisible.
_FRAMES = "-O1 -fno-omit-frame-pointer"
_ASAN = f"{_FRAMES} -fsanitize=address,undefined -fno-sanitize-recover=undefined -DCUDA_ON_CPU_ASAN"
MODES = {
    "plain": ("-O1", "-O2"),
    "asan": (_ASAN, _ASAN),
    "tsan": (f"{_FRAMES} -fsanitize=thread", f"{_FRAMES} -DCUDA_ON_CPU_TSAN"),
}
_SANITIZER = {"plain": "", "asan": "-fsanitize=address,undefined", "tsan": "-fsanitize=thread"}
# -fno-strict-aliasing: as nvcc. Unknown pragmas are `#pragma unroll`.
_COMMON = "-std=c++17 -g1 -fPIC -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -DFUSED_RESNET_TARGET=cuda"


def toolkit_include() -> Path | None:
    """The folder of CUDA's headers: the toolkit's, or that of the packages which PyTorch brings."""
    nvcc = shutil.which("nvcc")
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    homes = [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parent.parent] if nvcc else []), *packages.glob("cu*")]
    return next((home / "include" for home in homes if (home / "include" / "cuda_fp16.h").exists()), None)


def missing() -> str | None:
    """What a build here would lack, or None."""
    if shutil.which("g++") is None:
        return "no g++"
    return None if toolkit_include() else "no CUDA headers (cuda_fp16.h) under nvcc's folder or PyTorch's packages"


def build(mode: str, folder: Path, defines: Iterable[str] = (), units: Iterable[Path] | None = None) -> Path:
    """Compiles what is not up to date in ``folder`` and returns the module's path.

    ``defines`` are macros for the kernels, as for planted bugs. ``units`` replaces the sources of csrc/cuda.
    """
    import pybind11
    from ninja.ninja_syntax import Writer

    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cpp")]) if units is None else list(units)
    kernel_flags, runtime_flags = MODES[mode]
    macros = " ".join(f"-D{define}" for define in defines)
    includes = " ".join(f"-I{path}" for path in (HERE, CUDA, sysconfig.get_path("include"), pybind11.get_include()))
    with (folder / "build.ninja").open("w") as file:
        n = Writer(file, width=120)
        compile_one = (
            f"g++ {_COMMON} $flags {includes} -isystem {toolkit_include()} -MMD -MF $out.d -x c++ -c $in -o $out"
        )
        n.rule("compile", compile_one, depfile="$out.d", deps="gcc")
        n.rule("link", f"g++ -shared {_SANITIZER[mode]} $in -o $out")
        objects = []
        for flags, files in ((f"{kernel_flags} {macros}", sources), (runtime_flags, sorted(HERE.glob("*.cpp")))):
            for source in files:
                objects.append(f"{source.name}.o")
                n.build([objects[-1]], "compile", [str(source)], variables={"flags": flags})
        n.build(["_cuda.so"], "link", objects)
    done = subprocess.run([_ninja(), "-C", str(folder), "-j2"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"build of {folder} failed:\n{done.stdout[-4000:]}{done.stderr}")
    return folder / "_cuda.so"


def load(path: Path) -> ModuleType:
    """Imports the module that :func:`build` made."""
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preload(mode: str) -> str:
    """What LD_PRELOAD must hold for a Python that loads a module of this mode: the sanitizers' libraries."""
    names = {"plain": (), "asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}[mode]
    paths = [subprocess.run(["g++", f"-print-file-name={n}"], capture_output=True, text=True).stdout for n in names]
    return " ".join(path.strip() for path in paths)


def _ninja() -> str:
    from ninja import BIN_DIR

    return shutil.which("ninja", path=BIN_DIR) or "ninja"


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2])))
