"""What changed between two results, and what is noise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fused_resnet.bench.compare import Change, changed_environment, compare
from fused_resnet.bench.geometry import Layer
from fused_resnet.bench.layers import layer_row
from fused_resnet.bench.settings import Job
from fused_resnet.cli import main


def bench(variant: str, p20: float, median: float, p80: float, **environment: Any) -> dict[str, Any]:
    row = {"model": "resnet18", "mode": "train", "batch": 8, "image_size": 64, "dtype": "fp32", "device": "cpu"}
    rate = {"p20": p20, "median": median, "p80": p80}
    row |= {"threads": 2, "allocator": "tuned", "variant": variant, "img_per_s": rate}
    return {"environment": {"torch": "2", "date": "today"} | environment, "rows": [row]}


def layers(ms: float, stock_ms: float) -> dict[str, Any]:
    times = [{"ours": ms * share, "channels_last": stock_ms * share, "contiguous": 99.0} for share in (0.9, 1.0, 1.2)]
    job = Job("resnet18", "layers", "train", 8, 224, "fp32", "cpu", 2, 0)
    layer = Layer(8, 64, 64, 3, 3, (1, 1), (1, 1), (1, 1), 1, 56, 56)
    return {"environment": {}, "rows": [layer_row(job, layer, 4, "dgrad", times, 1e11, "winograd_f4")]}


def profile(ms: float) -> dict[str, Any]:
    block = {"block": "layer1.0", "fused": {"forward_ms": ms, "backward_ms": ms}}
    return {"model": "resnet18", "steps": {"fused": {"step": 3 * ms}}, "blocks": [block], "environment": {}}


@pytest.mark.parametrize(
    ("after", "verdict"),
    [((9.0, 11.0, 12.0), "within noise"), ((11.5, 12.0, 13.0), "better"), ((7.0, 8.0, 8.5), "worse")],
)
def test_a_change_is_one_where_the_spreads_do_not_meet(after: tuple[float, float, float], verdict: str) -> None:
    (change,) = compare(bench("fused", 9.0, 10.0, 11.0), bench("fused", *after))
    assert change.verdict == verdict and change.ratio == after[1] / 10.0
    assert change.name == "resnet18, train, batch 8, 64 px, fp32, cpu, 2 threads, tuned allocator, fused"


def test_less_time_is_better() -> None:
    changes = compare(profile(10.0), profile(9.0))
    assert [(c.name, c.verdict) for c in changes] == [
        ("resnet18, fused: step", "better"),
        ("resnet18, fused: layer1.0", "better"),
    ]
    assert {c.verdict for c in compare(profile(10.0), profile(10.4))} == {"within noise"}
    assert {c.verdict for c in compare(profile(10.0), profile(12.0))} == {"worse"}


def test_layers_by_their_rate() -> None:
    """2 * 8 * 64 * 64 * 9 * 56 * 56 operations, so 1.85 GFLOP in 10 ms."""
    ours, stock = compare(layers(10.0, 20.0), layers(5.0, 21.0))
    assert ours.name == "resnet18, batch 8, 224 px, fp32, 2 threads, 3x3 64>64 56x56, dgrad, ours"
    assert ours.unit == "GFLOP/s" and stock.name.endswith("dgrad, stock")
    assert ours.before is not None and ours.before[1] == pytest.approx(184.97, rel=1e-4)
    assert ours.before[0] < ours.before[1] < ours.before[2]
    assert (ours.verdict, ours.ratio) == ("better", pytest.approx(2.0)) and stock.verdict == "within noise"
    assert compare(layers(5.0, 20.0), layers(10.0, 20.0))[0].verdict == "worse"


def test_rows_that_one_result_lacks() -> None:
    changes = compare(bench("eager", 1, 2, 3), bench("fused", 4, 5, 6))
    assert [c.verdict for c in changes] == ["only before", "only after"]
    assert changes[0] == Change(changes[0].name, "img/s", (1, 2, 3), None, True)


def test_environment() -> None:
    assert changed_environment(bench("a", 1, 1, 1), bench("a", 1, 1, 1, torch="3", date="later")) == {
        "torch": ("2", "3")
    }


def test_what_all_names_share_is_said_once_and_no_number_is_cut(
    capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    both = bench("fused", 1234.5, 1234.6, 1234.7)
    both["rows"] += bench("eager", 9.0, 10.0, 11.0)["rows"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(both))
    assert main(["compare", str(path), str(path)]) == 0
    first, *table = capsys.readouterr().out.splitlines()
    rows = [line.split()[0] for line in table if "img/s" in line]
    assert "resnet18" in first and "threads" in first and rows == ["fused", "eager"]
    assert sum(line.count("(1234.50-1234.70)") for line in table) == 2


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected the JSON of bench or profile, got one with losses"):
        compare({"losses": []}, bench("fused", 1, 1, 1))
    with pytest.raises(ValueError, match="expected two results of one kind, got profile and bench"):
        compare(profile(1.0), bench("fused", 1, 1, 1))
    with pytest.raises(ValueError, match="expected two results of one kind, got bench and bench --layers"):
        compare(bench("fused", 1, 1, 1), layers(1.0, 1.0))


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json", "out.json", "out.html")]
    paths[0].write_text(json.dumps(bench("fused", 9.0, 10.0, 11.0)))
    paths[1].write_text(json.dumps(bench("fused", 19.0, 20.0, 21.0, torch="3")))
    assert main(["compare", str(paths[0]), str(paths[1]), "--json", str(paths[2]), "--html", str(paths[3])]) == 0
    printed = capsys.readouterr().out
    assert "better" in printed and "2.000" in printed and "torch: 2 before, 3 after" in printed
    result = json.loads(paths[2].read_text())
    assert result["changes"][0]["verdict"] == "better" and result["environment"] == {"torch": ["2", "3"]}
    assert "After ÷ before" in paths[3].read_text()
    paths[1].write_text("[1")
    assert main(["compare", str(paths[0]), str(paths[1])]) == 2
    assert "expected JSON" in capsys.readouterr().err
