"""What ``fused-resnet bench --layers`` prints and writes."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import fused_resnet
from fused_resnet.bench import layers
from fused_resnet.bench.geometry import Layer
from fused_resnet.cli import main

COMMAND = "bench --layers fused_resnet:resnet20 --batch 2 --image-size 32 --threads 1 --rounds 1"
LAYER = Layer(2, 3, 256, 3, 3, (2, 2), (1, 1), (1, 1), 1, 9, 117)


@pytest.fixture(autouse=True)
def worker(tmp_path, monkeypatch):
    """One layer in place of the model's, and a worker with a known peak and algorithm."""
    script = tmp_path / "worker.py"
    script.write_text(
        "from fused_resnet import _cpu\n"
        "from fused_resnet.backends import cpu\n"
        "from fused_resnet.bench import layer_trial, layer_worker\n"
        "_cpu.multiply_add_peak = lambda dtype, threads, seconds: 2e11\n"
        "cpu.conv_algorithm = lambda **_: 'winograd_f4'\n"
        "layer_trial.WARM_UP_MS = layer_trial.MEASUREMENT_MS = 0.1\n"
        "layer_worker.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(fused_resnet.__file__).parents[1]))
    monkeypatch.setattr(layers, "WORKER", (sys.executable, str(script)))
    monkeypatch.setattr(layers, "convolutions", lambda *_: {LAYER: 3})


def test_a_table_and_json(capsys, tmp_path):
    path = tmp_path / "layers.json"
    assert main([*COMMAND.split(), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert set(result) == {"environment", "rows"} and not result["environment"]["interrupted"]
    assert [(row["pass"], row["count"], row["algorithm"]) for row in result["rows"]] == [
        (name, 3, "winograd_f4") for name in ("forward", "dgrad", "wgrad")
    ]
    printed = capsys.readouterr().out
    assert "fused_resnet:resnet20, batch 2, 32x32, fp32, 1 threads" in printed
    lines = [line.split() for line in printed.splitlines()]
    for first, row in zip((["3x3/2", "3>256", "9x117"], ["3", "times"], []), result["rows"], strict=True):
        names = ("gflop_per_s", "stock_gflop_per_s", "percent_of_peak", "stock_percent_of_peak")
        rates = [f"{row[name]:.0f}" for name in names]
        times = [f"{row[name]['median']:.2f}" for name in ("ms", "stock_ms")]
        end = [f"{row['speedup_vs_stock']:.2f}", "winograd_f4"]
        assert [*first, row["pass"].replace("forward", "fwd"), *times, *rates, *end] in lines
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_ctrl_c_keeps_the_rows_so_far(capsys, monkeypatch, tmp_path):
    @contextmanager
    def progress_bar():
        def update(doing, done, total):
            if doing.endswith("wgrad"):
                raise KeyboardInterrupt

        yield update

    monkeypatch.setattr("fused_resnet.cli.bench_layers.progress_bar", progress_bar)
    path = tmp_path / "layers.json"
    assert main([*COMMAND.split(), "--json", str(path)]) == 130
    result = json.loads(path.read_text())
    assert result["environment"]["interrupted"]
    assert [row["pass"] for row in result["rows"]] == ["forward", "dgrad"]
    printed, errors = capsys.readouterr()
    assert "dgrad" in printed and "wgrad" not in printed
    assert errors == f"fused-resnet: error: interrupted; the results so far are above, also in {path}\n"


def test_a_failure_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(layers, "WORKER", (sys.executable, "-c", "raise SystemExit('out of memory')"))
    assert main(COMMAND.split()) == 1
    assert capsys.readouterr().err == (
        "fused-resnet: error: fused_resnet:resnet20, layers: the process ended with code 1: out of memory\n"
    )
