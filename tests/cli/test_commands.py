"""What the commands print and write."""

import contextlib
import json
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest
import torch

import fused_resnet
from fused_resnet.bench import BenchError
from fused_resnet.bench.variants import VARIANTS
from fused_resnet.cli import main, output

TINY_BENCH = (
    "bench fused_resnet:resnet20 --batch 4 --image-size 32 --threads 1 --variants fused,eager --allocator tuned"
)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("command", ["", "bench", "compare", "fuse", "info", "profile", "train"])
def test_help(capsys, command):
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: fused-resnet" in text and "--help" in text


def test_help_draws_nothing():
    code = (
        "import sys; from fused_resnet.cli import main; main(['bench', '--help']); print('matplotlib' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("False\n")


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 0
    assert "Usage: fused-resnet" in capsys.readouterr().out


def test_python_m_runs_it_too(tmp_path):
    command = [sys.executable, "-m", "fused_resnet", "info", "--json", str(tmp_path / "info.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads((tmp_path / "info.json").read_text())
    assert facts["version"] == fused_resnet.__version__ and facts["torch"] == torch.__version__
    assert "reference: available" in ran.stdout and ran.stderr == ""


def test_fuse_prints_the_report(capsys, tmp_path):
    assert main(["fuse", "resnet18", "--exclude", "layer4", "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"] == "resnet18"
    fused = {entry["name"] for entry in report["fused"]}
    assert "layer1.0" in fused and "layer4.0" not in fused
    assert all(name in printed for name in fused)


def interrupted_progress(begins):
    """A progress display that stands for Ctrl-C when it is told that something begins."""

    @contextlib.contextmanager
    def progress_bar():
        def update(doing, done, total):
            if begins in doing:
                raise KeyboardInterrupt

        yield update

    return progress_bar


def test_bench_keeps_the_complete_rounds_when_interrupted(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("fused_resnet.cli.bench.progress_bar", interrupted_progress("round 3, eager"))
    paths = {name: tmp_path / name for name in ("json", "plot", "html")}
    arguments = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    assert main([*TINY_BENCH.split(), *arguments]) == 130
    result = json.loads(paths["json"].read_text())
    assert set(result) == {"environment", "rows"} and result["environment"]["interrupted"]
    assert [row["variant"] for row in result["rows"]] == ["fused", "eager"]
    assert paths["plot"].read_bytes().startswith(PNG)
    page = paths["html"].read_text()
    assert "interrupted before its end" in page and 'class="figure"' in page
    printed, errors = capsys.readouterr()
    assert errors.startswith("fused-resnet: error: interrupted; the results so far are above")
    assert "fused_resnet:resnet20, batch 4, tuned allocator" in printed
    speedup = result["rows"][0]["speedup_vs_best_stock"]
    assert f"{speedup:.3f}" in printed and f"{speedup:.3f}" in page
    assert {*tmp_path.iterdir()} == {*paths.values()}  # and no temporary file


def test_bench_says_which_variant_is_not_installed(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(
        "fused_resnet.bench.variants.VARIANTS", {n: VARIANTS[n] for n in ("fused", "eager", "openvino")}
    )
    command = TINY_BENCH.replace("--variants fused,eager", "--mode infer --rounds 1")
    assert main([*command.split(), "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["fused", "eager"]
    assert [*result["environment"]["variants_left_out"]] == ["openvino"]
    printed = capsys.readouterr().out
    assert "left out: variant 'openvino' needs openvino" in printed and "[compare]" in printed
    assert "saved MB" not in printed  # in mode infer nothing is


def test_a_run_that_fails_is_one_line_and_no_success(capsys, monkeypatch):
    def fail(*_, **__):
        raise BenchError("resnet18, variant fused: the process ended")

    monkeypatch.setattr("fused_resnet.cli.bench.run_settings", fail)
    assert main(["bench"]) == 1
    assert capsys.readouterr().err == "fused-resnet: error: resnet18, variant fused: the process ended\n"


def test_a_model_with_nothing_to_fuse_is_no_benchmark(capsys):
    """It would show stock beside stock."""
    arguments = "squeezenet1_0 --batch 1 --image-size 64 --rounds 1 --variants fused,eager --allocator default"
    assert main(["bench", *arguments.split()]) == 1
    assert "expected a model with something to fuse" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("fused_resnet.cli.bench.run_settings", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["bench"])


def test_bench_without_arguments_measures_the_two_models_of_the_readme(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fused_resnet.cli.bench.run_settings", lambda settings, *_, **__: asked.append(settings) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        main(["bench"])
    (settings,) = asked
    assert [settings.job(model, "fused")[:6] for model in settings.models] == [
        ("resnet18", "fused", "train", 32, 224, "fp32"),
        ("resnet50", "fused", "train", 16, 224, "fp32"),
    ]
    assert list(settings.compared) == ["fused", "eager", "channels_last", "compile"]
    assert list(settings.allocators) == [
        "default",
        "tuned",
    ]


def test_train_writes_its_losses_and_curves(capsys, tmp_path):
    before = torch.get_num_threads()
    json_path, plot_path, page = (tmp_path / f"train.{kind}" for kind in ("json", "png", "html"))
    arguments = f"train --epochs 1 --batch 718 --threads 1 --json {json_path} --plot {plot_path} --html {page}"
    assert main(arguments.split()) == 0
    torch.set_num_threads(before)
    result = json.loads(json_path.read_text())
    assert len(result["losses"]) == 3 and len(result["epochs"]) == 1
    assert f"{result['epochs'][0]['test_accuracy']:.2%}" in capsys.readouterr().out
    assert plot_path.read_bytes().startswith(PNG)
    assert page.read_text().count('class="figure"') == 2


def test_train_keeps_its_losses_when_interrupted(tmp_path):
    path = tmp_path / "train.json"
    program = f"""
import contextlib, signal, sys
from fused_resnet.cli import main, train
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
train.progress_bar = lambda: contextlib.nullcontext(lambda *_: print("a step", flush=True))
sys.exit(main("train --batch 8 --threads 1 --stock --json {path}".split()))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout.readline() == "a step\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == f"fused-resnet: error: interrupted; the results so far are above, also in {path}\n"
    result = json.loads(path.read_text())
    assert result["interrupted"] and len(result["losses"]) > 0 and result["epochs"] == []


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    output.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        output.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and [*tmp_path.iterdir()] == [path]


def test_profile_writes_everything(capsys, tmp_path):
    before = torch.get_num_threads()
    paths = {name: tmp_path / name for name in ("json", "trace", "plot", "html")}
    options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    command = "profile fused_resnet:resnet20 --batch 2 --image-size 32 --steps 1 --threads 1 --allocator default"
    assert main([*command.split(), *options]) == 0
    torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert "sum: the step" in printed and "layer3.2" in printed and "longer than a bare one" in printed
    result = json.loads(paths["json"].read_text())
    assert set(result["steps"]) == {"stock", "fused"} and result["settings"]["allocator"] == "default"
    assert result["environment"]["torch"] == torch.__version__
    assert json.loads(paths["trace"].read_text())["traceEvents"]
    assert paths["plot"].read_bytes().startswith(PNG)
    assert paths["html"].read_text().count('class="figure"') == 6
    assert {*tmp_path.iterdir()} == {*paths.values()}


def test_profile_keeps_its_steps_when_interrupted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fused_resnet.cli.profile.progress_bar", interrupted_progress("torch.profiler"))
    path = tmp_path / "profile.json"
    asked = []  # mallopt would change malloc for the tests that follow
    monkeypatch.setattr("fused_resnet.cli.profile.use_allocator", asked.append)
    command = f"profile fused_resnet:resnet20 --batch 2 --image-size 32 --steps 1 --threads 1 --json {path}"
    before = torch.get_num_threads()
    assert main([*command.split(), "--allocator", "tuned"]) == 130
    torch.set_num_threads(before)
    assert asked == ["tuned"]
    assert "the results so far are above" in capsys.readouterr().err
    result = json.loads(path.read_text())
    assert result["interrupted"] and result["steps"]["fused"]["step"] > 0 and result["ops"] == []
