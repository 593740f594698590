"""The variants a benchmark compares: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["VARIANTS", "Variant", "default_variants"]

# Torch is imported inside the functions: the table is read by the command line's help, which must be instant.

EXTRA = "pip install 'fused-resnet[compare]'"


@dataclass(frozen=True)
class Variant:
    """A way to run a model. ``prepare`` takes it as built, with images, and returns what is called with such images.

    ``prepare`` may rely on ``torch.get_num_threads()`` being the benchmark's.
    """

    name: str
    description: str
    prepare: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]
    channels_last: bool = True  # memory format of parameters and images
    is_stock: bool = True  # a baseline for speedup_vs_best_stock
    compiles: bool = False  # in its first step, which says nothing of its pace then
    default_modes: tuple[str, ...] = ("train", "infer")  # those that it takes part in unasked
    modes: tuple[str, ...] = ("train", "infer")
    dtypes: tuple[str, ...] = ("fp32", "fp64", "bf16", "fp16")
    devices: tuple[str, ...] = ("cpu", "cuda")
    packages: tuple[str, ...] = ()  # importable names, of the extra ``compare``

    def refusal(self, mode: str, dtype: str, device: str) -> ValueError | ImportError | None:
        """The error that says why this variant cannot run so, or None."""
        for field, got, expected in (
            ("mode", mode, self.modes),
            ("dtype", dtype, self.dtypes),
            ("device", device, self.devices),
        ):
            if got not in expected:
                return ValueError(f"variant {self.name!r}: expected {field} {' or '.join(expected)}, got {got}")
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            return ImportError(f"variant {self.name!r} needs {' and '.join(missing)}, not installed: {EXTRA}")
        return None


def default_variants(mode: str, dtype: str, device: str) -> tuple[list[str], dict[str, str]]:
    """The variants that are compared when none is named, and why each of the others of this mode is left out."""
    refusals = {v.name: v.refusal(mode, dtype, device) for v in VARIANTS.values() if mode in v.default_modes}
    left_out = {name: str(refusal) for name, refusal in refusals.items() if refusal}
    return [name for name in refusals if name not in left_out], left_out


def _fused(model: nn.Module, images: Tensor) -> nn.Module:
    import fused_resnet

    report = fused_resnet.fuse(model)
    if not (report.fused or report.partial):
        raise ValueError("expected a model with something to fuse; `fused-resnet fuse` says why there is nothing")
    return model


def _stock(model: nn.Module, images: Tensor) -> nn.Module:
    import fused_resnet

    fused_resnet.unfuse(model)  # models of this package are born fused
    return model


def _compile(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    import torch

    return torch.compile(_stock(model, images))


def _compile_freeze(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    import torch

    compiled: Callable[[Tensor], Tensor] = torch.compile(_stock(model, images))
    # Both are read when the first call traces the model; torch.compile's options would come too late for the tracer.
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        compiled(images)
    return compiled


def _onnxruntime(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    from .engines import onnxruntime_session

    return onnxruntime_session(_stock(model, images), images)


def _openvino(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    from .engines import openvino_model

    return openvino_model(_stock(model, images), images)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("fused", "fused_resnet.fuse, channels_last", _fused, is_stock=False),
        Variant("eager", "stock PyTorch, contiguous", _stock, channels_last=False),
        Variant("channels_last", "stock PyTorch, channels_last", _stock),
        Variant(
            "compile",
            "torch.compile of stock PyTorch, channels_last",
            _compile,
            compiles=True,
            default_modes=("train",),
        ),
        Variant(
            "compile_freeze",
            "compile with weights frozen into the program, infer only",
            _compile_freeze,
            default_modes=("infer",),
            modes=("infer",),
        ),
        Variant(
            "onnxruntime",
            "ONNX Runtime on the CPU, infer only",
            _onnxruntime,
            channels_last=False,
            default_modes=("infer",),
            modes=("infer",),
            dtypes=("fp32",),
            devices=("cpu",),
            packages=("onnxruntime", "onnx", "onnxscript"),
        ),
        Variant(
            "openvino",
            "OpenVINO on the CPU in full fp32, infer only",
            _openvino,
            channels_last=False,
            default_modes=("infer",),
            modes=("infer",),
            dtypes=("fp32",),
            devices=("cpu",),
            packages=("openvino", "onnx", "onnxscript"),
        ),
    )
}
