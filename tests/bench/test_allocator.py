"""malloc's settings, in a process of their own."""

import subprocess
import sys

import pytest

from fused_resnet.bench.allocator import stages

SCRIPT = """
import sys
from pathlib import Path
from fused_resnet.bench.allocator import use_allocator
import torch

def left_after_free():
    pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
    before = pages()
    tensor = torch.ones(2**25)  # 128 MB
    assert pages() - before > 30_000, "the tensor was in memory that malloc had"
    del tensor
    return pages() - before

print(left_after_free())
use_allocator("tuned")
print(left_after_free())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_process_goes_on_under_the_tuned_allocator():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back < 3_000 and kept > 30_000  # of 32,768 pages


def test_one_process_serves_both_settings_in_one_order_only():
    assert stages(["default", "tuned"]) == [["default", "tuned"]]
    assert stages(["tuned", "default"]) == [["tuned"], ["default"]]
    assert stages(["tuned"]) == [["tuned"]]
