"""Other inference engines, given a PyTorch model by way of ONNX: same weights, same number of threads, fp32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["onnxruntime_session", "openvino_model"]

Engine = Callable[[Tensor], Tensor]  # contiguous images [N, C, H, W] to the model's first output


def onnxruntime_session(model: nn.Module, images: Tensor) -> Engine:
    """ONNX Runtime's CPU provider with all its graph optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads wait for work in a busy loop; when a run ends they must leave the cores to the next variant.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(_onnx(model, images), options, providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())
    outputs = [session.get_outputs()[0].name]
    return lambda x: torch.from_numpy(session.run(outputs, {name: x.numpy()})[0])


def openvino_model(model: nn.Module, images: Tensor) -> Engine:
    """OpenVINO's CPU plugin, set for latency. The result shares memory with that of the next call."""
    import openvino

    core = openvino.Core()
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # its own choice is bf16 where the processor has that
    }
    compiled = core.compile_model(core.read_model(_onnx(model, images)), "CPU", hints)
    return lambda x: torch.from_numpy(compiled(x.numpy(), share_inputs=True, share_outputs=True)[0])


def _onnx(model: nn.Module, images: Tensor) -> bytes:
    """The model in evaluation, for images of just this size, as a serialized ONNX ModelProto."""
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None  # as no file was named
    return program.model_proto.SerializeToString()
