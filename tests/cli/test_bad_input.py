"""Bad input gets one line on stderr and exit code 2, before anything runs."""

import os
import subprocess
import sys

import pytest

from fused_resnet.cli import main


def error_of(capsys, *arguments):
    """The one line on stderr, without its beginning."""
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("fused-resnet: error: ")
    return line.removeprefix("fused-resnet: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bench resnet19", "unknown model 'resnet19'; nearest: resnet"),
        (
            "bench caffe:resnet18",
            "expected a model as NAME or SOURCE:NAME with SOURCE of torchvision, fused_resnet, timm",
        ),
        ("bench --variants fused,jit", "unknown variant 'jit'; known: fused, eager, channels_last, compile"),
        ("bench --variants openvino", "variant 'openvino': expected mode infer, got train"),
        ("bench --variants fused,", "unknown variant ''; known: fused"),
        ("bench --batch 0", "batch: expected at least 1, got 0"),
        ("bench --batch many", "Invalid value for '--batch'"),
        ("bench --image-size -3", "image_size: expected at least 1, got -3"),
        ("bench --threads 0", "threads: expected at least 1, got 0"),
        ("bench --rounds 0", "rounds: expected at least 1, got 0"),
        ("bench --mode test", "unknown mode 'test'; known: train, infer"),
        ("bench --dtype int8", "unknown dtype 'int8'; known: fp32, fp64, bf16, fp16"),
        ("bench --device tpu", "unknown device 'tpu'; known: cpu, cuda"),
        ("bench --allocator jemalloc", "unknown allocator 'jemalloc'; known: default, tuned"),
        ("bench --layers --dtype bf16", "layers: expected dtype fp32, got bf16"),
        ("bench --layers resnet19", "unknown model 'resnet19'; nearest: resnet"),
        ("bench --layers --batch 0", "batch: expected at least 1, got 0"),
        (
            "bench --layers --mode infer --html page.html",
            "--allocator, --minutes, --plot, --html beside it, got --mode, --html",
        ),
        ("bench --minutes 0", "minutes: expected more than 0, got 0.0"),
        ("bench --bacth 3", "No such option: --bacth"),
        ("fuse resnet19", "unknown model 'resnet19'; nearest: resnet"),
        ("fuse", "Missing argument"),
        ("fuse resnet18 --exclude layer5", "exclude: expected a module's path, got 'layer5'"),
        ("profile resnet19", "unknown model 'resnet19'; nearest: resnet"),
        ("profile resnet18 --allocator jemalloc", "unknown allocator 'jemalloc'; known: default, tuned"),
        ("profile resnet18 --batch 0", "batch: expected at least 1, got 0"),
        ("profile resnet18 --steps 0", "steps: expected at least 1, got 0"),
        (
            "profile alexnet --allocator default --batch 1 --image-size 64",
            "expected a model with something to fuse, got alexnet",
        ),
        ("compare a.json missing.json", "cannot read a.json: No such file or directory"),
        ("train --data cifar", "unknown data 'cifar'; known: digits"),
        ("train --model resnet21", "unknown model 'resnet21'; nearest: resnet"),
        ("train --model squeezenet1_0", "expected a model with something to fuse, got squeezenet1_0"),
        ("train --epochs 0", "epochs: expected at least 1, got 0"),
        ("train --lr nan", "lr: expected a positive number, got nan"),
        ("tarin", "No such command 'tarin'"),
    ],
    ids=lambda text: (
        text.replace(" ", "_") if text.split()[0] in ("bench", "compare", "fuse", "profile", "train", "tarin") else ""
    ),
)
def test_one_line(capsys, arguments, message):
    assert message in error_of(capsys, *arguments.split())


@pytest.mark.parametrize("command", ["bench", "fuse resnet18", "train", "info"])
def test_a_path_that_cannot_be_written(capsys, tmp_path, command):
    assert "got the directory" in error_of(capsys, *command.split(), "--json", str(tmp_path))
    missing = str(tmp_path / "missing" / "result.json")
    assert f"cannot write {missing}: No such file or directory" == error_of(capsys, *command.split(), "--json", missing)
    (tmp_path / "file").touch()
    inside_a_file = str(tmp_path / "file" / "result.json")
    assert "Not a directory" in error_of(capsys, *command.split(), "--json", inside_a_file)


@pytest.mark.parametrize(("option", "package"), [("--plot", "matplotlib"), ("--html", "plotly")])
@pytest.mark.parametrize("command", ["bench", "profile resnet18", "train"])
def test_pictures_need_a_writable_path_and_their_package(capsys, monkeypatch, tmp_path, command, option, package):
    assert "got the directory" in error_of(capsys, *command.split(), option, str(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert package in error_of(capsys, *command.split(), option, str(tmp_path / "picture"))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("variable", ["FUSED_RESNET_BACKEND", "FUSED_RESNET_ISA"])
def test_info_names_a_variable_that_is_wrong(variable):
    command = [sys.executable, "-m", "fused_resnet", "info"]
    done = subprocess.run(command, env=os.environ | {variable: "sse9"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"fused-resnet: error: {variable}: expected")
    assert done.stderr.count("\n") == 1


def test_a_source_that_is_not_installed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "model 'torchvision:resnet18' needs torchvision" in error_of(capsys, "bench", "torchvision:resnet18")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "data 'digits' needs scikit-learn" in error_of(capsys, "train")


def test_a_variant_that_is_not_installed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = error_of(capsys, "bench", "--mode", "infer", "--variants", "onnxruntime")
    assert message.startswith("variant 'onnxruntime' needs onnxruntime")
    assert message.endswith("not installed: pip install 'fused-resnet[compare]'")


def test_cuda_where_there_is_none(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch finds no CUDA device" in error_of(capsys, "bench", "--device", "cuda")
