"""The command line: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fused_resnet.cli import main

MISTAKES = {
    "unknown-command": (["bensh"], "No such command"),
    "unknown-option": (["bench", "--bogus"], "--bogus"),
    "unknown-model": (["bench", "resnet19"], "unknown model 'resnet19'; nearest: resnet18"),
    "unknown-model-fuse": (["fuse", "resnet19"], "unknown model 'resnet19'; nearest: resnet18"),
    "unknown-source": (["fuse", "hub:resnet18"], "SOURCE of torchvision, "),
    "unknown-variant": (["bench", "--variants", "fused,fast"], "unknown variant 'fast'; known: fused, eager"),
    "unknown-mode": (["bench", "--mode", "test"], "unknown mode 'test'; known: train, infer"),
    "unknown-dtype": (["bench", "--dtype", "int8"], "unknown dtype 'int8'; known: fp32"),
    "unknown-allocator": (["bench", "--allocator", "jemalloc"], "unknown allocator 'jemalloc'"),
    "unknown-device": (["bench", "--device", "tpu"], "unknown device 'tpu'; known: cpu, cuda"),
    "zero-batch": (["bench", "--batch", "0"], "batch: expected at least 1, got 0"),
    "negative-size": (["bench", "--image-size", "-3"], "image_size: expected at least 1, got -3"),
    "zero-threads": (["bench", "--threads", "0"], "threads: expected at least 1, got 0"),
    "zero-rounds": (["bench", "--rounds", "0"], "rounds: expected at least 1, got 0"),
    "not-a-number": (["bench", "--batch", "many"], "'--batch'"),
    "missing-model": (["fuse"], "Missing argument"),
    "unknown-module": (["fuse", "resnet18", "--exclude", "layer5"], "exclude: expected a module's path, got 'layer5'"),
    "unknown-data": (["train", "--data", "imagenet"], "unknown data 'imagenet'; known: digits"),
    "negative-lr": (["train", "--lr", "-1"], "lr: expected a positive number, got -1.0"),
    "no-directory": (["bench", "--json", "missing/out.json"], "expected a path in an existing directory"),
    "a-directory": (["info", "--json", "."], "expected a file, got the directory"),
    "no-picture": (["train", "--plot", "missing/out.png"], "expected a path in an existing directory"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[case]
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fused-resnet: error: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize("command", [[], ["bench"], ["fuse"], ["train"], ["info"]], ids=lambda c: " ".join(c) or "all")
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage: fused-resnet" in out
    assert ("--json" in out) == bool(command)


def test_help_imports_no_plotting() -> None:
    code = (
        "import sys; from fused_resnet.cli import main; main(['bench', '--help']); print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_fuse_prints_the_report_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert main(["fuse", "resnet18", "--exclude", "layer4", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "layer1.0  BasicBlock  fused" in out and "1 skipped" in out
    report = json.loads(path.read_text())
    assert [entry["name"] for entry in report["skipped"]] == ["layer4"]
    assert {"name": "layer2.1", "class": "BasicBlock", "reason": "conv1 bn1, conv2 bn2, add"} in report["fused"]


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", str(tmp_path / "info.json")]) == 0
    facts = json.loads((tmp_path / "info.json").read_text())
    assert facts["backends"]["reference"] == "available"
    assert facts["version"] in capsys.readouterr().out


def test_bench_writes_rows_picture_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {kind: tmp_path / f"out.{kind}" for kind in ("json", "png", "html")}
    arguments = ["bench", "fused_resnet:resnet20", "--batch", "2", "--image-size", "32", "--rounds", "2"]
    arguments += ["--variants", "fused,eager,channels_last", "--allocator", "default", "--threads", "1"]
    outputs = ["--json", str(paths["json"]), "--plot", str(paths["png"]), "--html", str(paths["html"])]
    assert main([*arguments, *outputs]) == 0
    result = json.loads(paths["json"].read_text())
    assert [row["variant"] for row in result["rows"]] == ["fused", "eager", "channels_last"]
    assert result["rows"][0]["speedup_vs_best_stock"] > 0
    assert result["environment"]["correctness"][0]["relative_errors"]["fused"]["logits"] < 1e-4
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    page = paths["html"].read_text()
    assert "data:image/png;base64," in page and 'src="http' not in page
    assert "fused" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "out.json", "out.png"]


def test_train_writes_losses_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = tmp_path / "run.json", tmp_path / "run.png"
    arguments = ["train", "--epochs", "1", "--batch", "256", "--json", str(paths[0]), "--plot", str(paths[1])]
    assert main(arguments) == 0
    result = json.loads(paths[0].read_text())
    assert len(result["losses"]) == 6 and len(result["epochs"]) == 1
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert "test accuracy" in capsys.readouterr().out


def test_interrupted_training_keeps_its_result(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "fused_resnet", "train", "--epochs", "500", "--batch", "32", "--json", str(path)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    time.sleep(15)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    result = json.loads(path.read_text())
    assert result["interrupted"] and result["losses"]
