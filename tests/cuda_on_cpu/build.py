"""Builds the CUDA kernels, launchers and binding of csrc/cuda with g++ against the runtime in this folder.

The result is the module ``fused_resnet._cuda``, running on the CPU. The modes are ``plain``, ``asan`` (with
UndefinedBehaviorSanitizer), ``tsan``, and ``shadow``, which knows of each byte of shared memory whether it was written.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from cuda_on_cpu.planted_bugs import PlantedBug

__all__ = [
    "MODES",
    "SANITIZER_EXIT_CODE",
    "build",
    "build_planted",
    "build_probes",
    "environment",
    "load",
    "missing",
]

SANITIZER_EXIT_CODE = 66

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CUDA = ROOT / "csrc" / "cuda"

# Flags of everything that is compiled, and of the runtime where it differs: to ThreadSanitizer it must be invisible.
_FRAMES = "-O1 -fno-omit-frame-pointer"
# A call at each load and store instead of a test in line, which would take the compiler twice as long.
_CALLS = "--param asan-instrumentation-with-call-threshold=0"
# What UBSan would say of null and of pointers outside their objects ASan says where they are followed.
_ASAN = (
    f"{_FRAMES} -fsanitize=address,undefined -fno-sanitize=null,object-size,pointer-overflow "
    "-fno-sanitize-recover=undefined -DCUDA_ON_CPU_ASAN"
)
# The calls are shared_memory.cpp's; of the stack it needs to know nothing.
_REPORT_ACCESSES = f"-fsanitize=kernel-address {_CALLS} --param asan-stack=0 --param asan-globals=0"
MODES = {
    "plain": ("-O1", "-O2"),
    "asan": (f"{_ASAN} {_CALLS}", _ASAN),
    "tsan": (f"{_FRAMES} -fsanitize=thread", f"{_FRAMES} -DCUDA_ON_CPU_TSAN"),
    "shadow": (f"-O1 {_REPORT_ACCESSES}", "-O2 -DCUDA_ON_CPU_SHADOW"),
}
_SANITIZER = {"plain": "", "asan": "-fsanitize=address,undefined", "tsan": "-fsanitize=thread", "shadow": ""}
# -fno-strict-aliasing: as nvcc. -fno-gnu-unique: several builds in one process keep apart. Unknown pragmas: unroll.
_COMMON = (
    "-std=c++17 -g1 -fPIC -fno-gnu-unique -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas "
    "-DFUSED_RESNET_TARGET=cuda"
)
# What a build for one type leaves out: all but float32, of the convolutions all but the type of the exercise.
_OTHER_TYPES = (
    "case DType::float64: return f(TypeTag<double>{});",
    "case DType::bfloat16: return f(TypeTag<__nv_bfloat16>{});",
    "case DType::float16: return f(TypeTag<__half>{});",
)
_CONV_TYPES = {
    "float16": ("case DType::float16: return visit_16_bit<__half>(large, vector, f);",),
    "bfloat16": ("case DType::bfloat16: return visit_16_bit<__nv_bfloat16>(large, vector, f);",),
    "float32": (
        "if (!vector) return f(TraitsTag<FmaTile<false>>{});",
        "return call.allow_tf32 ? f(TraitsTag<SmallTile<float, true>>{}) : f(TraitsTag<FmaTile<true>>{});",
    ),
}


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


def build(mode: str, root: Path) -> Path:
    """Compiles what is not up to date, in folders under ``root``, and returns the module's path."""
    kernels = dict.fromkeys(_kernels(), MODES[mode][0])
    return _link(mode, root, root / mode, kernels, _bindings(root))


def build_probes(mode: str, root: Path) -> Path:
    """The kernels of probes.cu on the runtime, as a library that :mod:`cuda_on_cpu.probes` opens."""
    kernels = {HERE / "probes.cu": f"{MODES[mode][0]} -I{CUDA}"}
    return _link(mode, root, root / f"probes-{mode}", kernels)


def build_planted(bug: PlantedBug, root: Path) -> Path:
    """The module with this bug planted, in a folder of its own under ``root``.

    One unit is compiled, for one type to save time; the others are those of the build without a bug.
    """
    folder = root / "planted" / hashlib.sha256(repr(bug).encode()).hexdigest()[:16]
    dtype = bug.exercise.partition("-")[2].replace("tf32", "float32") or "float16"
    others = [line for other, lines in _CONV_TYPES.items() if other != dtype for line in lines]
    patches = {"dispatch.h": [(line, "") for line in _OTHER_TYPES], "conv_dispatch.h": [(line, "") for line in others]}
    patches.setdefault(bug.file, []).append((bug.before, bug.after))
    for source in (*CUDA.parent.glob("*.h"), *CUDA.glob("*.h"), *CUDA.glob("*.cu")):
        text = source.read_text()
        for before, after in patches.get(source.name, ()):
            if text.count(before) != 1:
                raise ValueError(f"{source.name}: expected once, found {text.count(before)} times: {before!r}")
            text = text.replace(before, after)
        copy = folder / source.relative_to(CUDA.parent.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)
    base = build(bug.mode, root).parent
    sound = [base / f"{source.name}.o" for source in _kernels() if source.name != bug.unit]
    compiled = {folder / "csrc" / "cuda" / bug.unit: MODES[bug.mode][0]}
    return _link(bug.mode, root, folder, compiled, [*sound, *_bindings(root)])


def _kernels() -> list[Path]:
    return sorted(CUDA.glob("*.cu"))


def _header(mode: str, root: Path) -> Path:
    """precompiled.h, compiled beforehand for a mode's kernels."""
    folder = root / f"header-{mode}"
    _ninja(folder, {HERE / "precompiled.h": MODES[mode][0]})
    return folder / "precompiled.h.gch"


def _runtime(mode: str, root: Path) -> list[Path]:
    """The objects of the runtime."""
    return _objects(root / f"runtime-{mode}", HERE, MODES[mode][1])


def _bindings(root: Path) -> list[Path]:
    """The objects of the binding, for all modes: no sanitizer looks at pybind11, which takes long to compile."""
    return _objects(root / "bindings", CUDA, "-O1")


def _objects(folder: Path, sources: Path, flags: str) -> list[Path]:
    compiled = dict.fromkeys(sorted(sources.glob("*.cpp")), flags)
    _ninja(folder, compiled)
    return [folder / f"{source.name}.o" for source in compiled]


def _link(mode: str, root: Path, folder: Path, kernels: dict[Path, str], objects: Iterable[Path] = ()) -> Path:
    """Compiles kernels with their flags, links them with the runtime and finished objects: the module's path."""
    link = f"g++ -shared {_SANITIZER[mode]} $in -o $out"
    _ninja(folder, kernels, _header(mode, root), link, [*objects, *_runtime(mode, root)])
    return folder / "_cuda.so"


def _ninja(
    folder: Path,
    compiled: dict[Path, str],
    header: Path | None = None,
    link: str = "",
    objects: Iterable[Path] = (),
) -> None:
    """Compiles sources with their flags, kernels faster with a compiled ``header`` that they begin with.

    ``link`` is the command that makes a module of them and finished objects.
    """
    import pybind11
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer

    folder.mkdir(parents=True, exist_ok=True)
    includes = " ".join(f"-I{path}" for path in (HERE, sysconfig.get_path("include"), pybind11.get_include()))
    command = [shutil.which("ninja", path=BIN_DIR) or "ninja", "-C", str(folder), "-j2"]
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        with (folder / "build.ninja").open("w") as file:
            n = Writer(file, width=120)
            compiler = f"g++ {_COMMON} $flags {includes} -isystem {toolkit_include()}"
            for rule, language in (("compile", "c++"), ("compile-header", "c++-header")):
                command_line = f"{compiler} -MMD -MF $out.d -x {language} -c $in -o $out"
                n.rule(rule, command_line, depfile="$out.d", deps="gcc")
            for source, flags in compiled.items():
                rule, suffix = ("compile-header", "gch") if source.suffix == ".h" else ("compile", "o")
                outputs, before = [f"{source.name}.{suffix}"], []
                if header:  # which hides from the compiler's list what it includes
                    flags, before = f"-I{header.parent} -include {header.stem} {flags}", [str(header)]
                n.build(outputs, rule, [str(source)], implicit=before, variables={"flags": flags})
            if link:
                n.rule("link", link)  # an inline function in both is that of the first, which a sanitizer sees
                n.build(["_cuda.so"], "link", [*(f"{source.name}.o" for source in compiled), *map(str, objects)])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"build of {folder} failed:\n{done.stdout[-4000:]}{done.stderr}")


def load(path: Path) -> ModuleType:
    """Imports the module that :func:`build` made."""
    # pybind11 would return the first module of a name again, wherever the second comes from.
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}._cuda", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(mode: str) -> dict[str, str]:
    """The environment of a Python that loads a module of this mode: the sanitizers' libraries first, one thread."""
    names = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}.get(mode, ())
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    options = f"exitcode={SANITIZER_EXIT_CODE}"
    return os.environ | {
        "CUDA_ON_CPU_MODE": mode,
        "LD_PRELOAD": " ".join(libraries),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
        "ASAN_OPTIONS": f"{options} detect_leaks=0",  # leaks are Python's own
        "UBSAN_OPTIONS": f"{options} print_stacktrace=1",
        "TSAN_OPTIONS": f"{options} ignore_noninstrumented_modules=1 history_size=1",
    }
