"""The layer benchmark: rows from planted times, and runs with a real child process."""

import sys
from pathlib import Path

import pytest

import fused_resnet
from fused_resnet.bench import BenchError, layers
from fused_resnet.bench.geometry import PASSES, Layer
from fused_resnet.bench.layers import layer_row, layer_settings, run_layers

MODEL = "fused_resnet:resnet20"
FIRST = Layer(2, 3, 8, 3, 3, (1, 1), (1, 1), (1, 1), 1, 9, 7)
SECOND = Layer(2, 8, 8, 1, 1, (2, 2), (0, 0), (1, 1), 1, 9, 7)
ROUNDS = [  # the machine is four times slower in the second round
    {"ours": 1.0, "channels_last": 3.0, "contiguous": 2.5},
    {"ours": 4.0, "channels_last": 6.0, "contiguous": 9.0},
    {"ours": 1.0, "channels_last": 1.2, "contiguous": 2.5},
]
FIELDS = (
    "model batch image_size dtype threads layer count C K R S stride padding dilation groups H W pass ms stock_ms "
    "stock_layout gflop_per_s stock_gflop_per_s percent_of_peak stock_percent_of_peak speedup_vs_stock algorithm"
)


def settings(**fields):
    return layer_settings(**{"models": [MODEL], "batch": 2, "image_size": 32, "threads": 1, "rounds": 2} | fields)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Two layers in place of the model's, and a worker with a known peak; ``worker(line)`` adds a line of Python."""

    def plant(line=""):
        script = tmp_path / "worker.py"
        script.write_text(
            "from fused_resnet import _cpu\n"
            "from fused_resnet.backends import cpu\n"
            "from fused_resnet.bench import layer_trial, layer_worker\n"
            "_cpu.multiply_add_peak = lambda dtype, threads, seconds: 2e11\n"
            "layer_trial.WARM_UP_MS = layer_trial.MEASUREMENT_MS = 0.1\n"
            f"{line}\n"
            "layer_worker.main()\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(Path(fused_resnet.__file__).parents[1]))
        monkeypatch.setattr(layers, "WORKER", (sys.executable, str(script)))
        monkeypatch.setattr(layers, "convolutions", lambda *_: {FIRST: 1, SECOND: 3})

    plant()
    return plant


def test_a_row_has_the_fields_of_the_contract():
    job = settings().job(MODEL, "layers")
    row = layer_row(job, FIRST, 3, "dgrad", ROUNDS, peak=1e9, algorithm="winograd_f4")
    assert list(row) == FIELDS.split()
    assert (row["layer"], row["count"], row["pass"], row["algorithm"]) == ("3x3 3>8 9x7", 3, "dgrad", "winograd_f4")
    assert row["ms"] == pytest.approx({"median": 1.0, "p20": 1.0, "p80": 2.8})
    assert row["stock_layout"] == "contiguous" and row["stock_ms"]["median"] == 2.5
    gflop = 2 * (2 * 9 * 7) * 8 * 3 * 9 / 1e9
    assert row["gflop_per_s"] == pytest.approx(gflop / 1e-3)
    assert row["stock_gflop_per_s"] == pytest.approx(gflop / 2.5e-3)
    assert row["percent_of_peak"] == pytest.approx(100 * gflop / 1e-3 / 1)
    assert row["stock_percent_of_peak"] == pytest.approx(100 * gflop / 2.5e-3 / 1)
    assert row["speedup_vs_stock"] == pytest.approx(2.5)  # of 2.5, 2.25, 2.5


def test_a_run(worker):
    worker("cpu.conv_algorithm = lambda conv, weight_shape, output_shape, **_: f'{weight_shape} {output_shape[2:]}'")
    doing, written = [], []
    result = run_layers(settings(), lambda *state: doing.append(state), lambda so_far: written.append(len(so_far.rows)))
    assert [(row["layer"], row["count"], row["pass"]) for row in result.rows] == [
        (layer.text, count, pass_name) for layer, count in ((FIRST, 1), (SECOND, 3)) for pass_name in PASSES
    ]
    assert doing[3] == (f"{MODEL}, 1x1/2 8>8 9x7, forward", 3, 6)
    assert written == [1, 2, 3, 4, 5, 6] and not result.interrupted
    assert result.environment["multiply_add_peak_flop_per_s"] == {MODEL: 2e11}
    assert result.environment["threads"] == 1
    for row in result.rows:
        assert row["percent_of_peak"] == pytest.approx(row["gflop_per_s"] / 2)
        assert row["speedup_vs_stock"] > 0
    assert result.rows[0]["algorithm"] == "(8, 3, 3, 3) (9, 7)"


def test_ctrl_c_keeps_the_rows_so_far(worker):
    def progress(doing, done, total):
        if done == 2:
            raise KeyboardInterrupt

    written = []
    result = run_layers(settings(), progress, lambda so_far: written.append((len(so_far.rows), so_far.interrupted)))
    assert result.interrupted and [row["pass"] for row in result.rows] == ["forward", "dgrad"]
    assert written == [(1, False), (2, False), (2, True)]


@pytest.mark.parametrize("factor", ["1.01", "float('nan')"])
def test_a_layer_that_computes_something_else_is_refused(worker, factor):
    worker(f"""
right = cpu.bn_act_conv_backward
cpu.bn_act_conv_backward = lambda *a: tuple(None if g is None else {factor} * g for g in right(*a))""")
    rows = []
    with pytest.raises(BenchError, match=r"resnet20, 3x3 3>8 9x7, dgrad: ours computes .*, expected at most 1e-04; it"):
        run_layers(settings(), on_rows=lambda so_far: rows.append(len(so_far.rows)))
    assert rows == [1]  # forward was right


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "bf16"}, "layers: expected dtype fp32, got bf16"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"models": ["resnet19"]}, "unknown model 'resnet19'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        settings(**wrong)
