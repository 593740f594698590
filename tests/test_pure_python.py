"""An install without a compiler: no native module, and blocks that train on ``triton`` and on ``reference``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "fused_resnet", "csrc")

# Three steps of a fused block beside its stock twin. An editable install's finder would bring the native modules back.
TRAIN = """
import copy, sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
import torch, fused_resnet
from fused_resnet.backends import fallbacks
from torchvision.models.resnet import BasicBlock

backend, site = sys.argv[1:]
assert fused_resnet.__file__.startswith(site), fused_resnet.__file__
assert "compiler" in fused_resnet.info()["backends"]["cpu"], fused_resnet.info()["backends"]
assert "cpu" not in fused_resnet.available_backends()
torch.manual_seed(0)
stock = BasicBlock(8, 8)
block = copy.deepcopy(stock)
assert fused_resnet.fuse(block).fused
x = torch.randn(2, 8, 6, 6)

def losses(module):
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(3):
        loss = module(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()

with fused_resnet.use_backend(backend):
    ours = list(losses(block))
torch.testing.assert_close(ours, list(losses(stock)), rtol=1e-5, atol=0)
assert ours[2] < ours[0] and not fallbacks(), (ours, fallbacks())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    environment = os.environ | {"FUSED_RESNET_NATIVE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(target.rglob("*.so"))
    return target


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_block_trains(backend: str, site: Path) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    interpret = {"TRITON_INTERPRET": "1"} if backend == "triton" else {}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | interpret
    environment |= {"PYTHONPATH": str(site), "FUSED_RESNET_TRITON_CONV": "implicit_product"}
    command = [sys.executable, "-c", TRAIN, backend, str(site)]
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
