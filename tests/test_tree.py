"""Promises about the source tree that no other test would notice broken."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for folder in ("csrc", "fused_resnet", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")
]


def test_native_core_includes_no_torch_header() -> None:
    """So one build serves every torch release, and builds where there is no torch."""
    native = [path for path in SOURCES if path.is_relative_to(ROOT / "csrc")]
    assert native
    for path in native:
        includes = [line for line in path.read_text().splitlines() if line.lstrip().startswith("#include")]
        assert not [line for line in includes if any(word in line for word in ("torch", "ATen", "c10"))], path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_has_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
