"""Single convolutions as the child process computes and times them, here in this one."""

from types import SimpleNamespace

import pytest
import torch

from fused_resnet import _cpu
from fused_resnet.backends import cpu, reference
from fused_resnet.bench import layer_trial, peak
from fused_resnet.bench.geometry import OURS, PASSES, STOCK, Layer
from fused_resnet.bench.layer_trial import FORMS, REFERENCE, LayerTrial
from fused_resnet.bench.layers import MAX_ERROR, layer_settings

LAYERS = {
    "3x3": Layer(2, 17, 10, 3, 3, (1, 1), (1, 1), (1, 1), 1, 9, 7),
    "1x1/2": Layer(2, 8, 20, 1, 1, (2, 2), (0, 0), (1, 1), 1, 9, 7),
    "7x7/2": Layer(1, 3, 16, 7, 7, (2, 2), (3, 3), (1, 1), 1, 20, 20),
    "groups": Layer(2, 8, 12, 3, 3, (1, 1), (1, 1), (1, 1), 4, 6, 6),
    "dilation": Layer(1, 16, 16, 3, 3, (1, 1), (2, 2), (2, 2), 1, 8, 8),
}


@pytest.fixture
def trial(one_thread, monkeypatch):
    monkeypatch.setattr(layer_trial, "WARM_UP_MS", 0.1)
    monkeypatch.setattr(layer_trial, "MEASUREMENT_MS", 0.1)
    return LayerTrial(layer_settings(models=["fused_resnet:resnet20"], threads=1).job("some", "layers"))


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", LAYERS)
def test_forms_compute_the_same(trial, name, pass_name):
    errors = trial.prepare(LAYERS[name], pass_name)
    assert set(errors) == {OURS, "channels_last"}
    assert all(error < MAX_ERROR / 10 for error in errors.values())


@pytest.mark.parametrize("pass_name", PASSES)
def test_each_pass_is_the_gradient_that_its_name_says(trial, pass_name):
    trial.prepare(LAYERS["3x3"], pass_name)
    o = trial.operands[REFERENCE]
    x, weight = o.x.double().requires_grad_(), o.weight.double().requires_grad_()
    y = torch.nn.functional.conv2d(x, weight, None, *o.conv)
    y.backward(o.g.double())
    expected = {"forward": y.detach(), "dgrad": x.grad, "wgrad": weight.grad}[pass_name]
    for form in FORMS:
        torch.testing.assert_close(trial.calls[form]().double(), expected, rtol=1e-4, atol=1e-4)


def test_a_wrong_form_shows(trial, monkeypatch):
    right = cpu.bn_act_conv
    monkeypatch.setattr(cpu, "bn_act_conv", lambda *a, **k: (1.01 * right(*a, **k)[0],))
    errors = trial.prepare(LAYERS["3x3"], "forward")
    assert errors[OURS] == pytest.approx(1e-2, rel=1e-2) and errors["channels_last"] < MAX_ERROR


def test_operands_are_in_the_memory_format_of_the_form(trial):
    trial.prepare(LAYERS["3x3"], "wgrad")
    for name, form in FORMS.items():
        for tensor in trial.operands[name][:4]:
            assert tensor.is_contiguous(memory_format=form.memory_format)
    assert {FORMS[name].memory_format for name in STOCK} == {torch.channels_last, torch.contiguous_format}


@pytest.mark.parametrize(("channels", "expected"), [(8, 1), (16, 0)], ids=["8_channels", "16_channels"])
def test_stock_goes_round_the_wgrad_that_writes_out_of_bounds(trial, monkeypatch, channels, expected):
    asked = []

    def spy(g, u, *rest):
        asked.append(u)
        return reference.convolution_backward(g, u, *rest)

    trial.prepare(LAYERS["1x1/2"]._replace(C=channels), "wgrad")
    monkeypatch.setattr(layer_trial, "reference", SimpleNamespace(convolution_backward=spy))
    for form in STOCK:
        trial.calls[form]()
    assert [id(u) for u in asked] == [id(trial.operands["channels_last"].x)] * expected


def test_measurements_are_in_turn_and_of_many_calls(trial, monkeypatch):
    trial.prepare(LAYERS["3x3"], "forward")
    called = []
    trial.calls = {form: lambda form=form: called.append(form) for form in FORMS}
    trial.repeats = {"ours": 2, "channels_last": 1, "contiguous": 3}
    times = trial.measure(["contiguous", "ours", "channels_last"])
    assert called == ["contiguous"] * 3 + ["ours"] * 2 + ["channels_last"]
    assert set(times) == set(FORMS) and all(ms > 0 for ms in times.values())


def test_short_calls_are_repeated(trial, monkeypatch):
    monkeypatch.setattr(layer_trial, "MEASUREMENT_MS", 5.0)
    trial.prepare(LAYERS["3x3"], "forward")
    assert all(10 < count < 5000 for count in trial.repeats.values())


def test_the_algorithm_is_the_backends_word_for_it(trial, monkeypatch):
    trial.prepare(LAYERS["3x3"], "dgrad")
    monkeypatch.setattr(
        cpu,
        "conv_algorithm",
        lambda conv, weight_shape, output_shape, dtype, weight_gradient: (
            f"{conv == LAYERS['3x3'].conv} {weight_shape} {output_shape} {dtype} {weight_gradient}"
        ),
        raising=False,
    )
    assert trial.algorithm() == "True (10, 17, 3, 3) (2, 10, 9, 7) torch.float32 False"
    trial.prepare(LAYERS["3x3"], "wgrad")
    assert trial.algorithm() == "True (10, 17, 3, 3) (2, 10, 9, 7) torch.float32 True"


def test_a_depthwise_layer(trial):
    for pass_name in PASSES:
        assert trial.prepare(LAYERS["groups"]._replace(K=8, groups=8), pass_name)[OURS] < MAX_ERROR
        assert trial.algorithm() == "depthwise"


@pytest.mark.precision("high")
def test_the_algorithms_of_our_engine(trial):
    trial.prepare(LAYERS["1x1/2"], "forward")
    assert trial.algorithm() == "direct"
    trial.prepare(LAYERS["3x3"]._replace(C=32, K=32), "forward")
    assert trial.algorithm() in ("winograd_f2", "bf16x3")


def test_the_peak_is_the_best_of_some_runs(trial, monkeypatch):
    asked, answers = [], iter([1e9, 3e9, 2e9])
    monkeypatch.setattr(_cpu, "multiply_add_peak", lambda *a: asked.append(a) or next(answers), raising=False)
    assert trial.peak() == 3e9
    assert asked == [(0, 1, peak.RUN_S)] * peak.RUNS
