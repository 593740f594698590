"""The tune file: kept across processes, merged among writers, harmless when broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_resnet.backends import choices, tune
from fused_resnet.backends.arguments import Conv

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def file(tune_file: Path) -> Path:
    return tune_file


def test_a_choice_is_found_again(file: Path) -> None:
    line = tune.key("cuda", CPU, "conv_dgrad", torch.bfloat16, (1, 2, 3, 4), (5, 2, 1, 1), (1, 1))
    assert line == "cuda | cpu | conv_dgrad | bfloat16 | 1x2x3x4 5x2x1x1 1x1"
    assert tune.lookup(line) is None
    tune.store({line: "128x64"})
    assert tune.lookup(line) == "128x64"
    assert json.loads(file.read_text())["choices"] == {line: "128x64"}


def test_a_layout_is_part_of_what_is_tuned_for() -> None:
    x, weight, conv = torch.zeros(1, 2, 3, 4), torch.zeros(5, 2, 1, 1), Conv((1, 1), (0, 0), (1, 1), 1)
    assert choices.key("triton", "bn_add_act", x) == "triton | cpu | bn_add_act | float32 | 1x2x3x4 contiguous"
    dense = x.contiguous(memory_format=torch.channels_last)
    assert choices.key("triton", "bn_add_act", dense) == "triton | cpu | bn_add_act | float32 | 1x2x3x4"
    assert "contiguous" not in choices.key("triton", "conv_dgrad", x, weight, conv)  # brought to channels_last


def test_default_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSED_RESNET_TUNE_FILE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert tune.tune_file() == Path("/somewhere/fused_resnet/tune.json")


_DEEP = pytest.param('{"version": 1, "choices": ' + "[" * 100_000, id="deep")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0, "choices": {}}', '{"version": 1}', "\x00\xff", _DEEP])
def test_a_broken_file_counts_as_empty_and_is_replaced(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.warns(RuntimeWarning, match="fused_resnet ignores .*tune.json"):
        assert tune.lookup("a") is None
    with pytest.warns(RuntimeWarning, match="ignores"):
        tune.store({"a": "b"})
    assert tune.lookup("a") == "b"


def test_a_disk_that_is_full_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.store({"a": "b"})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="no space"):
        tune.store({"a": "c"})
    assert tune.lookup("a") == "b"
    assert [p.name for p in sorted(file.parent.iterdir())] == ["tune.json", "tune.lock"]


def test_concurrent_writers_lose_nothing(file: Path) -> None:
    code = (
        "import sys; from fused_resnet.backends import tune\n"
        "for i in range(20): tune.store({f'{sys.argv[1]} {i}': 'x'})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], env=dict(os.environ)) for n in range(3)]
    assert [w.wait() for w in writers] == [0, 0, 0]
    assert len(json.loads(file.read_text())["choices"]) == 60
    assert [p.name for p in sorted(file.parent.iterdir())] == ["tune.json", "tune.lock"]
