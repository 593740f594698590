"""Builds the native modules of fused_resnet with ninja; everything else about the package is in pyproject.toml.

``fused_resnet._cpu`` compiles its kernels once for each instruction set of the processor family and chooses at run
time; ``fused_resnet._cuda`` holds machine code for each GPU architecture, and PTX for those to come. No torch is
needed: the modules take addresses, not tensors. Environment variables:

CXX
    The C++ compiler (g++ or clang++; C++17, OpenMP, vector extensions). Without one the package is pure Python.
CUDA_HOME
    Where the CUDA toolkit is, if nvcc is not on PATH. Without nvcc there is no ``fused_resnet._cuda``.
FUSED_RESNET_NATIVE=0
    Leaves the native modules out on purpose.
FUSED_RESNET_CUDA=0
    Leaves ``fused_resnet._cuda`` out on purpose.
FUSED_RESNET_SANITIZE=address,undefined
    Builds with these sanitizers of the compiler, and symbols; see ``make sanitize``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
KERNELS = (
    "bn_act_max_pool",
    "bn_add_act",
    "bn_add_act_backward",
    "conv_dgrad",
    "conv_forward",
    "conv_wgrad",
    "gather_conv",
    "gather_plan",
    "gather_wgrad",
    "grouped_conv",
    "grouped_wgrad",
    "strip_wgrad",
    "kernels",
    "line_conv",
    "line_wgrad",
    "multiply_add_peak",
    "pointwise_conv",
    "winograd_conv",
    "winograd_wgrad",
)
# Passes over tensors, at memory's pace: -O3 takes twice as long as -O2 and wins nothing. Nor does the baseline need it.
PASSES = ("bn_act_max_pool", "bn_add_act", "bn_add_act_backward")

AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
AMX = f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16"
X86 = {"baseline": (0, ""), "avx2": (32, AVX2), "avx512": (64, AVX512), "amx": (64, AMX)}
ARM = {"baseline": (0, ""), "neon": (16, "")}
# Instruction sets by machine: the bytes of a vector (0: scalar) and the compiler's options.
TARGETS = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}

# -Wno-maybe-uninitialized: GCC's own AVX-512 header warns, and Clang does not know that warning.
FLAGS = (
    "-std=c++17 -O3 -fno-math-errno -fPIC -fvisibility=hidden -fopenmp "
    "-Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized -Wno-unknown-warning-option"
)


GPU_ARCHITECTURES = (80, 86, 89, 90, 100, 120)

# The CUDA runtime is linked statically, so that the module imports where there is no driver.
NVCC_FLAGS = "-std=c++17 -O3 -DFUSED_RESNET_TARGET=cuda -Xcompiler=-fPIC,-fvisibility=hidden,-Wall"

SANITIZERS = os.environ.get("FUSED_RESNET_SANITIZE", "")
SANITIZE = f"-fsanitize={SANITIZERS} -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1" if SANITIZERS else ""


def compiler() -> str | None:
    """The C++ compiler to use, or None."""
    if os.environ.get("FUSED_RESNET_NATIVE") == "0":
        return None
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((c for c in candidates if c and shutil.which(c.split()[0])), None)


def nvcc() -> str | None:
    """The CUDA compiler to use, or None."""
    if compiler() is None or os.environ.get("FUSED_RESNET_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)


def understands(options: str) -> bool:
    """Whether the compiler knows these options: for tile registers it takes GCC 11 or Clang 12."""
    command = [*str(compiler()).split(), *options.split(), "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class NinjaBuild(build_ext):
    """Compiles each extension's ninja file instead of calling the compiler from Python."""

    def build_extension(self, ext: Extension) -> None:
        from ninja import BIN_DIR

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp + ("-sanitize" if SANITIZERS else "")).resolve() / ext.name
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_ninja_file = {"fused_resnet._cpu": write_cpu_ninja_file, "fused_resnet._cuda": write_cuda_ninja_file}
        write_ninja_file[ext.name](build / "build.ninja", target)
        subprocess.run([shutil.which("ninja", path=BIN_DIR) or "ninja", "-C", str(build)], check=True)


def write_cpu_ninja_file(path: Path, target: Path) -> None:
    """The build of ``fused_resnet._cpu``: kernels once per instruction set, the choice and the binding once."""
    import pybind11
    from ninja.ninja_syntax import Writer

    cpu = ROOT / "csrc" / "cpu"
    includes = f"-I{sysconfig.get_path('include')} -I{pybind11.get_include()}"
    with path.open("w") as file:
        n = Writer(file, width=120)
        n.variable("cxx", compiler())
        n.rule(
            "compile", f"$cxx {FLAGS} {SANITIZE} $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc"
        )
        n.rule("link", f"$cxx -shared -fopenmp {SANITIZE or '-s'} $in -o $out")
        objects = []

        def compile_unit(unit: str, source: str, flags: str) -> None:
            objects.append(f"{unit}.o")
            n.build([objects[-1]], "compile", [str(cpu / f"{source}.cpp")], variables={"flags": flags})

        targets = dict(TARGETS[platform.machine()])
        if not understands(AMX):
            targets.pop("amx", None)
        for isa, (vector_bytes, options) in targets.items():
            flags = f"-DFUSED_RESNET_TARGET={isa} -DFUSED_RESNET_VECTOR_BYTES={vector_bytes} {options}"
            kernels = KERNELS
            if isa == "amx":
                flags += " -DFUSED_RESNET_PASSES=avx512"
                kernels = tuple(kernel for kernel in KERNELS if kernel not in PASSES)
            for kernel in kernels:
                quick = "-O2" if kernel in PASSES or isa == "baseline" else ""
                compile_unit(f"{isa}/{kernel}", kernel, f"{flags} {quick}")
        without_amx = "" if "amx" in targets else "-DFUSED_RESNET_WITHOUT_AMX"
        for unit in ("isa", "workspace", "tensor_memory", "prepared_convs", "training_block", "bindings"):
            compile_unit(unit, unit, f"{includes} {without_amx}")
        n.build([str(target)], "link", objects)


def write_cuda_ninja_file(path: Path, target: Path) -> None:
    """The build of ``fused_resnet._cuda``: kernels by nvcc for every architecture it knows, the binding by C++."""
    import pybind11
    from ninja.ninja_syntax import Writer

    cuda = ROOT / "csrc" / "cuda"
    listed = subprocess.run([str(nvcc()), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    known = [arch for arch in GPU_ARCHITECTURES if f"compute_{arch}" in listed]
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known]
    # Machine code runs within its major version, PTX on all later ones: the first where there is none between.
    ptx = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in sorted({known[0], known[-1]})]
    includes = f"-I{sysconfig.get_path('include')} -I{pybind11.get_include()}"
    with path.open("w") as file:
        n = Writer(file, width=120)
        n.variable("cxx", compiler())
        n.variable("nvcc", nvcc())
        n.variable("architectures", " ".join([*code, *ptx]))
        # -ccbin: nvcc would look for a compiler of its own.
        command = f"$nvcc -ccbin $cxx {NVCC_FLAGS} $architectures -MMD -MF $out.d -c $in -o $out"
        n.rule("device", command, depfile="$out.d", deps="gcc")
        n.rule("host", f"$cxx {FLAGS} {includes} -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        n.rule("link", "$nvcc -ccbin $cxx -shared -cudart=static -Xlinker=-s $in -o $out")
        objects = []
        for source in sorted([*cuda.glob("*.cu"), *cuda.glob("*.cpp")]):
            objects.append(f"{source.name}.o")
            n.build([objects[-1]], "device" if source.suffix == ".cu" else "host", [str(source)])
        n.build([str(target)], "link", objects)


def extensions() -> list[Extension]:
    """The native modules that this machine can build."""
    if compiler() is None or platform.system() != "Linux" or platform.machine() not in TARGETS:
        return []

    def extension(name: str) -> Extension:
        files = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / name).iterdir()]
        return Extension(f"fused_resnet._{name}", [str(p.relative_to(ROOT)) for p in sorted(files)])

    return [extension(name) for name in ("cpu", "cuda") if name == "cpu" or nvcc()]


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
