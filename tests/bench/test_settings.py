"""Settings refuse what cannot be run before anything is started."""

import re
import sys

import pytest

from fused_resnet.bench import Settings
from fused_resnet.bench.settings import ALLOCATORS
from fused_resnet.bench.variants import VARIANTS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"image_size": -1}, "image_size: expected at least 1, got -1"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"mode": "test"}, "unknown mode 'test'; known: train, infer"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; known: fp32"),
        ({"device": "tpu"}, "unknown device 'tpu'; known: cpu, cuda"),
        ({"variants": ["fused", "jit"]}, "unknown variant 'jit'; known: fused, eager, channels_last, compile"),
        ({"variants": ["compile_freeze"]}, "variant 'compile_freeze': expected mode infer, got train"),
        ({"variants": ["fused", "openvino"]}, "variant 'openvino': expected mode infer, got train"),
        ({"variants": ["onnxruntime"], "mode": "infer", "dtype": "bf16"}, "expected dtype fp32, got bf16"),
        ({"variants": ["fused", "fused"]}, "variant: expected distinct names of .*, got fused, fused"),
        ({"variants": []}, "variant: expected distinct names of .*, got none"),
        ({"allocators": ["jemalloc"]}, "unknown allocator 'jemalloc'; known: default, tuned"),
        ({"models": ["resnet19"]}, "unknown model 'resnet19'; nearest: resnet1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_default_variants_of_a_mode():
    assert list(Settings().compared) == ["fused", "eager", "channels_last", "compile"]
    settings = Settings(mode="infer")
    assert {*settings.compared, *settings.left_out} == {*VARIANTS} - {"compile"}
    half = Settings(mode="infer", dtype="bf16")
    assert list(half.compared) == ["fused", "eager", "channels_last", "compile_freeze"]
    assert half.left_out["openvino"] == "variant 'openvino': expected dtype fp32, got bf16"


@pytest.mark.parametrize("variant", ["onnxruntime", "openvino"])
def test_a_variant_that_is_not_installed_is_left_out_and_named(variant, monkeypatch):
    monkeypatch.setitem(sys.modules, variant, None)
    settings = Settings(mode="infer")
    assert variant not in settings.compared
    message = rf"variant '{variant}' needs {variant}.*, not installed: pip install 'fused-resnet\[compare\]'"
    assert re.fullmatch(message, settings.left_out[variant])
    with pytest.raises(ImportError, match=message):
        Settings(mode="infer", variants=["fused", variant])
    assert Settings(mode="infer", variants=["fused"]).left_out == {}


def test_batch_of_a_model():
    settings = Settings(models=["resnet18", "resnet50", "resnet34"])
    assert [settings.job(model, "fused").batch for model in settings.models] == [32, 16, 16]
    assert Settings(batch=3).job("resnet18", "fused").batch == 3


def test_the_tuned_allocator_is_that_of_the_contract():
    assert ALLOCATORS["tuned"] == {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "1000000000000",
        "MALLOC_TOP_PAD_": "268435456",
    }
