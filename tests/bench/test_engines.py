"""Other inference engines do as they are told: threads and precision."""

import pytest
import torch
from torch import nn

from fused_resnet.bench.engines import onnxruntime_session, openvino_model
from fused_resnet.bench.variants import VARIANTS


def need(variant):
    refusal = VARIANTS[variant].refusal("infer", "fp32", "cpu")
    if refusal:
        pytest.skip(str(refusal))


@pytest.fixture
def model():
    """With two outputs, of which the first is meant, as in a segmentation model."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, bias=False)

        def forward(self, x):
            y = self.conv(x)
            return {"out": y, "aux": y.mean((2, 3))}

    return Model().eval()


def test_onnxruntime(model, one_thread, monkeypatch):
    need("onnxruntime")
    import onnxruntime

    made = []

    def session(data, options, providers):
        stops = options.get_session_config_entry("session.force_spinning_stop")
        made.append((options.intra_op_num_threads, options.inter_op_num_threads, stops, providers))
        return real(data, options, providers=providers)

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    images = torch.randn(2, 3, 9, 9)
    found = onnxruntime_session(model, images)(images)
    assert made == [(1, 1, "1", ["CPUExecutionProvider"])]
    torch.testing.assert_close(found, model(images)["out"].detach())


def test_openvino(model, one_thread, monkeypatch):
    need("openvino")
    import openvino

    made = []

    def compile_model(*arguments):
        made.append(real(*arguments))
        return made[-1]

    core = openvino.Core()
    real = core.compile_model
    monkeypatch.setattr(core, "compile_model", compile_model)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    images = torch.randn(2, 3, 9, 9)
    found = openvino_model(model, images)(images)
    torch.testing.assert_close(found, model(images)["out"].detach())
    (compiled,) = made
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("PERFORMANCE_HINT") == "LATENCY"
