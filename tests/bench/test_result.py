"""A benchmark's result as text, as a page, and in a notebook."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

from fused_resnet.bench.result import BenchResult

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "epyc" / "resnet.json"


def test_as_text_as_a_page_and_in_a_notebook() -> None:
    kept = json.loads(RESULTS.read_text())
    result = BenchResult(kept["rows"], kept["environment"])
    assert "resnet18, batch 32, default allocator" in str(result) and "speedup" in str(result)
    page = result.to_html()
    assert page.startswith("<!doctype html>") and "resnet18, batch 32" in page
    frame = result._repr_html_()
    assert frame.startswith("<iframe") and page in unescape(frame)
