"""``make gpu-check`` as far as it runs without a GPU: a dry run of all of it, the table, and the refusal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import kernel_bandwidths
import process_group
import pytest
import torch
from cuda_on_cpu import build, cuda_emulated

from fused_resnet.backends import backends


def test_every_kernel_has_a_row_that_counts_its_bytes() -> None:
    cuda_emulated.ensure()
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)

    def one_ms(call) -> float:
        call()
        return 1.0

    rows = {row["kernel"]: row for row in kernel_bandwidths.bandwidths(x, one_ms)}
    moved = {name: round(row["gb_per_s"] * 1e6 / x.nbytes, 3) for name, row in rows.items()}
    pooled, k = 0.25 + 0.25 / 4, 64 / 8  # output elements for one of the input
    assert moved == {
        "copy": 2,
        "channel_statistics": 1,
        "channel_statistics_backward": 3,
        "bn_add_act": 3,
        "bn_add_act, silu": 3,
        "bn_add_act_backward": 5,
        "bn_act_max_pool": round(1 + pooled, 3),
        "bn_act_max_pool_backward": round(2 + pooled, 3),
        "conv_forward": 1 + k,
        "conv_dgrad": 2 + 2 * k,
        "conv_wgrad": 1 + 2 * k,
        "conv_bn_add_act": 1 + 2 * k,
    }


def test_dry_run(tmp_path: Path) -> None:
    """The script as it stands, in a process of its own: one JSON and one page, which say what was run."""
    cuda_emulated.require_compiler()
    command = [sys.executable, gpu_check.__file__, "--dry-run", "--folder", str(tmp_path)]
    environment = os.environ | {
        "PYTHONPATH": f"{build.ROOT}:{build.ROOT / 'tests'}",
        "FUSED_RESNET_TUNE_FILE": str(tmp_path / "tuned.json"),
    }
    done = subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.glob("gpu-check*")) == ["gpu-check.json", "gpu-check.md"]
    parts = json.loads((tmp_path / "gpu-check.json").read_text())["parts"]
    assert {name: part["ok"] for name, part in parts.items()} == dict.fromkeys(gpu_check.DRY_RUN.parts, True) | {
        "memcheck": None
    }
    assert {row["variant"] for row in parts["bench"]["rows"]} == {"fused", "eager"}
    tuned = json.loads((tmp_path / "tuned.json").read_text())["choices"]
    assert tuned == {row["key"]: row["chosen"] for row in parts["tune"]["rows"]} != {}
    text = (tmp_path / "gpu-check.md").read_text()
    assert "# gpu-check on no device: a dry run" in text and "| bn_add_act_backward | 2x8x8x8 | torch.float32 |" in text


def outcome(folder: Path, *parts: gpu_check.Part, budget_s: float = 60) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, parts and page of a plan."""
    plan = gpu_check.Plan("cpu", {str(i): part for i, part in enumerate(parts)})
    code = gpu_check.main(plan, folder, budget_s)
    result = json.loads((folder / "gpu-check.json").read_text())
    return code, list(result["parts"].values()), (folder / "gpu-check.md").read_text()


def python(code: str, limit_s: float = 60, keeps: str = "") -> gpu_check.Part:
    """A part that runs this code; with ``keeps`` the file it may write is its last argument."""
    return gpu_check.Part(("-c", code), limit_s, keeps)


def test_a_part_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    code, (first, second), text = outcome(
        tmp_path, python("raise SystemExit('no such device')"), python("print('well')")
    )
    assert code == 1 and (first["ok"], second["ok"]) == (False, True)
    assert "no such device" in text and "well" in text


def test_both_files_are_whole_after_every_part(tmp_path: Path) -> None:
    """The second part reads what there is while it runs."""
    files = [str(tmp_path / f"gpu-check.{suffix}") for suffix in ("json", "md")]
    reader = f"import json; print(json.load(open({files[0]!r}))['parts']['1'], 'first' in open({files[1]!r}).read())"
    code, (_, second), _ = outcome(tmp_path, python("print('first')"), python(reader))
    assert code == 0 and "not started" in second["tail"] and "True" in second["tail"]


def test_time_is_shared_out_by_the_clock(tmp_path: Path) -> None:
    """A part gets what is left, and one for which nothing is left is not run: only a sanitizer's may be missing."""
    outcome(tmp_path, python(""))  # the first asks for versions, and imports what has them
    hangs = python("print('begun', flush=True); import time; time.sleep(60)")
    code, (first, second), text = outcome(tmp_path, hangs, python(""), budget_s=4)
    assert code == 1 and (first["ok"], second["ok"]) == (False, None)
    assert re.search(r"begun.*not done after [1-4] s", first["tail"], re.DOTALL)
    assert second["tail"] == "not started: no time left" and "## 1\n\nnot run\n" in text
    assert outcome(tmp_path, python(""), budget_s=0)[0] == 1


def test_a_choice_whose_candidate_failed_is_no_success(tmp_path: Path) -> None:
    write = "import sys; open(sys.argv[-1], 'w').write('{\"rows\": [{\"left_out\": %s}]}')"
    parts = (python(write % "{}", keeps="--json"), python(write % '{\\"fused\\": \\"illegal\\"}', keeps="--json"))
    code, (without, refused), _ = outcome(tmp_path, *parts)
    assert code == 1 and (without["ok"], refused["ok"]) == (True, False)
    assert refused["rows"] == [{"left_out": {"fused": "illegal"}}]


def test_a_test_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_sum():\n    assert 1 + 1 == 3\n")
    arguments = ("-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", str(tmp_path / "test_it.py"))
    code, (part,), text = outcome(tmp_path, gpu_check.Part(arguments, 60, "--junitxml", r"\d+ passed"))
    assert code == 1 and part["rows"][0]["test"] == "test_sum" and "1 + 1" in part["rows"][0]["why"]
    assert "- test_sum" in text


def ends(pid: int) -> bool:
    """Whether the process is gone, but for an entry nobody waits for, within two seconds."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to see processes in")
@pytest.mark.parametrize("hangs", [True, False])
def test_no_process_outlives_its_command(hangs: bool) -> None:
    """A grandchild in the background, which an interrupt does not reach."""
    done = process_group.run(["sh", "-c", f"sleep 60 & echo pid $!; {'sleep 60' if hangs else ''}"], 1)
    assert done["ok"] is not hangs and done["seconds"] < 20
    assert ends(int(done["tail"].split()[1]))


def test_a_command_that_is_absent_is_reported() -> None:
    assert "no-such-command" in process_group.run(["no-such-command"], 1)["tail"]


@pytest.mark.parametrize(("gb", "batch"), [(141, 128), (85, 128), (51, 64), (42, 64), (24, 32)])
def test_batch_fits_the_device(gb: int, batch: int) -> None:
    assert gpu_check.batch_that_fits(gb * 10**9) == batch


def test_device_plan_runs_what_is_there() -> None:
    """Its files and marks exist, and each selection finds tests; no GPU is needed to collect them."""
    plan = gpu_check.device_plan(64)
    assert sum(plan.parts[name].limit_s for name in ("tests", "bandwidths", "tune", "bench")) <= gpu_check.BUDGET_S
    for name, fewest, most in (("tests", 600, 1200), ("memcheck", 15, 50), ("racecheck", 2, 3)):
        command = gpu_check.command_of(plan.parts[name]._replace(keeps=""), Path(), None)[
            -len(plan.parts[name].arguments) - 1 :
        ]
        done = subprocess.run([*command, "--collect-only"], cwd=build.ROOT, capture_output=True, text=True, check=False)
        found = re.search(r"(\d+)/\d+ tests collected", done.stdout)
        assert found and fewest <= int(found[1]) <= most, done.stdout[-2000:] + done.stderr


def test_sanitizer_comes_before_python_and_fails_on_what_it_finds() -> None:
    part = gpu_check.device_plan(64).parts["racecheck"]
    command = gpu_check.command_of(part, Path("kept.xml"), "compute-sanitizer")
    assert command[:5] == ["compute-sanitizer", "--tool", "racecheck", "--kernel-name", "kns=fused_resnet"]
    assert command[command.index(sys.executable) - 2 :][:2] == ["--error-exitcode", "1"]
    assert command[-2:] == ["--junitxml", "kept.xml"]


@pytest.mark.skipif(backends()["cuda"].unavailable is None, reason="there is a device")
def test_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main() == 2
    assert capsys.readouterr().err == f"gpu-check: {backends()['cuda'].unavailable}\n"
