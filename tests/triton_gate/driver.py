"""A Triton driver that has a target and no device, so that kernels compile as they would be launched."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

__all__ = ["TARGETS", "use_target"]

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class _CompileOnlyDriver(DriverBase):
    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> Any:
        return self.target.arch  # kernels are cached by device

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_active_torch_device(self) -> str:
        return "meta"

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing can be timed without a device")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


def use_target(name: str) -> None:
    """Makes ``name`` of TARGETS what kernels are compiled for."""
    driver.set_active(_CompileOnlyDriver(TARGETS[name]))
