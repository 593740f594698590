"""What a child process computes, here in this one."""

import time

import pytest
import torch
from torch.nn.functional import cross_entropy

from fused_resnet.bench.correctness import errors
from fused_resnet.bench.memory import SavedBytes
from fused_resnet.bench.settings import Settings
from fused_resnet.bench.trial import Trial
from fused_resnet.bench.trial import _logits as logits_of
from fused_resnet.bench.variants import VARIANTS

MODEL = "fused_resnet:resnet20"


@pytest.fixture(autouse=True)
def process():
    """What a trial has to itself in its own process: the number of threads, and what torch.compile has compiled."""
    before = torch.get_num_threads()
    torch.compiler.reset()
    yield
    torch.set_num_threads(before)


def trial(variant, **settings):
    settings = {"models": [MODEL], "batch": 4, "image_size": 32, "threads": 1} | settings
    return Trial(Settings(**settings).job(settings["models"][0], variant))


def checked(variant, tmp_path, **settings):
    subject = trial(variant, **settings)
    saved = subject.check(tmp_path / "answer.pt")
    return torch.load(tmp_path / "answer.pt"), saved


def needing_packages(names):
    """The variants as parameters, skipped where their packages are not installed."""
    for name in names:
        refusal = VARIANTS[name].refusal("infer", "fp32", "cpu")
        yield pytest.param(name, marks=pytest.mark.skipif(bool(refusal), reason=str(refusal)))


@pytest.mark.parametrize("variant", [*needing_packages(name for name in VARIANTS if name != "eager")])
def test_variants_infer_the_same(variant, tmp_path):
    reference, saved = checked("eager", tmp_path, mode="infer")
    assert saved is None and list(reference) == ["logits"]
    found, _ = checked(variant, tmp_path, mode="infer")
    assert errors(found, reference)["logits"] < 1e-5


def test_compile_freeze_holds_its_weights_as_constants(tmp_path):
    subject = trial("compile_freeze", mode="infer")
    with torch.no_grad():
        before = subject.forward(subject.images)
        subject.model.fc.weight.zero_()
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(subject.forward(subject.images), before)
        assert not torch.allclose(subject.model(subject.images), before)


@pytest.mark.parametrize("variant", ["fused", "channels_last"])
def test_variants_train_the_same_in_fp64(variant, tmp_path):
    reference, _ = checked("eager", tmp_path, dtype="fp64")
    found, _ = checked(variant, tmp_path, dtype="fp64")
    assert max(errors(found, reference).values()) < 1e-10


def test_fused_saves_less(tmp_path):
    _, fused = checked("fused", tmp_path)
    _, eager = checked("eager", tmp_path)
    assert 0.5 * eager < fused < 0.85 * eager


def test_saved_bytes_of_a_known_graph():
    subject = trial("eager", models=["torchvision:resnet18"])
    weight = subject.model.fc.weight
    features = torch.randn(4, 512, requires_grad=True)
    with SavedBytes() as saved:
        cross_entropy((features * 2).relu() @ weight.T, subject.labels)
    activations = 4 * 512 * 4  # the ReLU's output, which the product saves too; 2 is no tensor
    log_softmax = 4 * 1000 * 4
    labels_and_total_weight = 4 * 8 + 4
    assert saved.count(excluded=[weight, subject.images]) == activations + log_softmax + labels_and_total_weight


def test_a_step_trains_and_repeats(tmp_path):
    subjects = [trial("fused") for _ in range(2)]
    assert torch.equal(*(subject.model.fc.weight for subject in subjects))
    before = subjects[0].model.fc.weight.clone()
    assert subjects[0].step_ms() > 0
    assert not torch.equal(subjects[0].model.fc.weight, before)
    assert subjects[0].model.fc.weight.grad is None


def test_short_steps_are_timed_together(monkeypatch):
    subject, steps = trial("fused"), []
    monkeypatch.setattr(subject, "_step", lambda: steps.append(time.sleep(0.01 if steps else 0.2)))
    assert subject.step_ms() >= 200 and len(steps) == 1
    steps.clear()
    assert 10 <= subject.step_ms(at_least_s=0.3) < 200 and 2 <= len(steps) <= 11  # the first one is an outlier


def test_the_step_of_the_check_warms_up_but_where_it_compiles(tmp_path):
    subject = trial("eager")
    subject.check(tmp_path / "answer.pt")
    assert subject.warm_up(at_least_s=0.5 * subject.warm_s) == 0
    assert subject.warm_up(at_least_s=1.5 * subject.warm_s) > 0
    subject = trial("compile", mode="infer")
    subject.check(tmp_path / "answer.pt")
    assert subject.warm_s == 0.0 and subject.warm_up(at_least_s=1e-9) == 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_types_train_under_autocast(dtype, tmp_path):
    found, _ = checked("fused", tmp_path, dtype=dtype)
    assert found["logits"].dtype == getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype])
    assert found["gradients"][0].dtype == torch.float32


def test_logits_of_a_segmentation_model_and_of_none():
    logits = torch.zeros(1, 21, 8, 8)
    assert logits_of({"out": logits}) is logits
    with pytest.raises(TypeError, match=r"expected a model that returns logits \[N, classes, ...\], got list"):
        logits_of([{"boxes": logits}])
