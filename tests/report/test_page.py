"""The page: self-contained, and alive in a browser."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from support.browser import CHROMIUM, after

from fused_resnet.report import Page
from fused_resnet.report.page import Cell

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def page() -> str:
    built = Page("A <title>", "under & it")
    built.cards([("label", "1.5", "a note")])
    bars = {"type": "bar", "name": "stock", "x": ["a", "b"], "y": [1.0, 2.0], "marker": {"color": "--stock"}}
    built.figure("Figure </script>", [bars], {"height": 300})
    rows = [("ten", Cell("10.0", 10.0)), ("nine", Cell("9.0", 9.0)), ("none", Cell("", None))]
    built.table("Table", ("name", "value"), rows, best=[1])
    built.facts("Facts", {"a": "<b>", "list": [1, 2]})
    built.command("fused-resnet profile resnet18 --html 'a b.html'")
    return built.html()


def test_it_loads_nothing_and_escapes_everything() -> None:
    html = page()
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)  # Plotly's code names addresses in texts
    assert "http" not in own and "src=" not in own and "url(" not in own and "@import" not in own
    assert "<title>A &lt;title&gt;</title>" in html and "under &amp; it" in html and "<td>&lt;b&gt;</td>" in html
    data = re.search(r'<script type="application/json" id="figure1-data">(.*?)</script>', html, re.DOTALL)
    assert data and json.loads(data[1])["data"][0]["y"] == [1.0, 2.0]
    assert "<input" not in own  # so short a table needs no filter
    assert '<tr class=best><td>nine</td><td data-value="9">9.0</td></tr>' in html
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_without_plotly_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"needs plotly, .*pip install 'fused-resnet\[report\]'"):
        Page("t").html()


@in_a_browser
def test_it_draws_without_errors(tmp_path: Path) -> None:
    script = 'return [document.querySelectorAll(".figure .bars .point").length, document.title];'
    result = json.loads(after(page(), script, tmp_path))
    assert result == {"answer": [2, "A <title>"], "noted": []}


@in_a_browser
def test_tables_sort_and_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fused_resnet.report.page.LEAST_FILTERED", 3)
    script = """
      const rows = () => document.querySelectorAll("#table2 tbody tr:not([hidden])");
      const names = () => [...rows()].map((r) => r.cells[0].textContent);
      const answer = [names()];
      const [byName, byValue] = document.querySelectorAll("#table2 th button");
      byValue.click(); answer.push(names());
      byValue.click(); answer.push(names());
      byName.click(); answer.push(names());
      const input = document.querySelector("input[type=search]");
      input.value = "N 9"; input.dispatchEvent(new Event("input")); answer.push(names());
      return answer;
    """
    result = json.loads(after(page(), script, tmp_path))
    assert result["noted"] == []
    start, down, up, names, filtered = result["answer"]
    assert start == ["ten", "nine", "none"]
    assert down.index("ten") < down.index("nine") and up.index("nine") < up.index("ten")
    assert names == sorted(start, reverse=True) and filtered == ["nine"]


@in_a_browser
def test_hovering_names_the_point(tmp_path: Path) -> None:
    script = """
      const figure = document.querySelector(".figure");
      Plotly.Fx.hover(figure, [{curveNumber: 0, pointNumber: 1}]);
      await new Promise((done) => setTimeout(done, 300));
      return document.querySelector(".hoverlayer").textContent;
    """
    result = json.loads(after(page(), script, tmp_path))
    assert result["noted"] == [] and "2" in result["answer"]


@in_a_browser
@pytest.mark.parametrize("width", [500, 1280])
def test_nothing_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;"
    assert json.loads(after(page(), script, tmp_path, width))["answer"] == 0
