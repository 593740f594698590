"""The pages of bench, compare and train in a browser, on a desk and on a phone, by day and by night.

profile's has a test of its own. The results are made by hand: nothing is measured.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from support.browser import CHROMIUM, after

from fused_resnet.bench.colors import COLORS
from fused_resnet.bench.compare import changed_environment, compare
from fused_resnet.bench.compare_page import changes_page
from fused_resnet.bench.plot import bar_chart
from fused_resnet.bench.result import BenchResult
from fused_resnet.bench.settings import Job
from fused_resnet.bench.summary import row
from fused_resnet.bench.variants import VARIANTS
from fused_resnet.train import Epoch, TrainResult, TrainSettings
from fused_resnet.train.page import training_page

COMMAND = "fused-resnet bench 'a b' --html page.html"


def bench_result() -> BenchResult:
    """Two models, one with a long name, under both allocators: every variant, each slower than the last."""
    rows = []
    for model in ("resnet18", "timm:res2net50_26w_4s"):
        for allocator in ("default", "tuned"):
            rounds = [{name: 100.0 + 9 * i + wobble for i, name in enumerate(VARIANTS)} for wobble in (0, 4, -3)]
            for variant in VARIANTS:
                job = Job(model, variant, "infer", 16, 224, "fp32", "cpu", 2, 0)
                rows.append(row(job, allocator, rounds, [*VARIANTS][1:], None, 10**9))
    return BenchResult(rows, {"torch": "2", "command": COMMAND, "variable": "x" * 100})


def bench_page() -> str:
    return bench_result().to_html()


def compare_page() -> str:
    """Each model faster, slower, or neither; some more than others."""
    before = bench_result().to_dict()
    after = copy.deepcopy(before)
    after["environment"]["torch"] = "3"
    for index, found in enumerate(after["rows"]):
        for name in found["img_per_s"]:
            found["img_per_s"][name] *= 0.4 + 0.1 * index
    return changes_page(compare(before, after), changed_environment(before, after), "before.json", "after.json")


def train_page() -> str:
    losses = [2.5 * 0.97**step for step in range(120)]
    epochs = [Epoch(i, losses[10 * i - 1], 1 - 0.9**i, 1.5 * i) for i in range(1, 13)]
    return training_page(TrainResult(TrainSettings(), losses, epochs, {"torch": "2", "command": COMMAND}, 18.0))


PAGES = {"bench": bench_page, "compare": compare_page, "train": train_page}
FIGURES = {"bench": 1, "compare": 1, "train": 2}

# Rectangles that meet by more than a pixel; contrast as WCAG 2 defines it.
SCRIPT = """
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const box = (element) => element.getBoundingClientRect();
  const meet = (a, b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3)
      .map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = luminance(getComputedStyle(document.body).backgroundColor);
  const contrast = (color) => {
    const [low, high] = [back, luminance(color)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const figures = all(".figure");
  const labels = all(".figure .main-svg text").filter((text) => text.textContent);
  const crossing = figures.flatMap((figure) => [".xtick text", ".ytick text", ".legendtext"].flatMap((kind) => {
    const texts = all(kind, figure);
    return texts.filter((a, i) => texts.slice(i + 1).some((b) => meet(box(a), box(b)))).map((t) => t.textContent);
  }));
  const cut = figures.flatMap((figure) => all("text", figure).filter((text) =>
    box(text).width && (box(text).left < box(figure).left - 1 || box(text).right > box(figure).right + 1
      || box(text).bottom > box(figure).bottom + 1 || box(text).top < box(figure).top - 1)).map((t) => t.textContent));
  const swatches = all(".legend .legendpoints path").map((path) => getComputedStyle(path).fill);

  const hovered = [];
  for (const figure of figures) {
    Plotly.Fx.hover(figure, [{ curveNumber: 0, pointNumber: 0 }]);
    await new Promise((done) => setTimeout(done, 200));
    hovered.push(all(".hoverlayer text", figure).map((t) => t.textContent).join(" "));
  }

  const { cellIndex } = document.querySelector("td:nth-child(n + 2)[data-value]");
  const sorted = [1, 2].map(() => {
    document.querySelectorAll("th button")[cellIndex].click();
    return [...document.querySelector("tbody").rows].map((row) => Number(row.cells[cellIndex].dataset.value));
  });

  const button = document.querySelector(".command button");
  const copied = [];
  if (button) {
    let allowed = true;
    const writeText = async (text) => { if (!allowed) throw new Error("forbidden"); copied.push(text); };
    Object.defineProperty(navigator, "clipboard", { value: { writeText } });
    for (allowed of [true, false]) {
      button.click();
      await new Promise((done) => setTimeout(done, 50));
      copied.push(button.textContent);
    }
    copied.push(String(getSelection()));
  }
  return {
    width: innerWidth, dark: matchMedia("(prefers-color-scheme: dark)").matches,
    crossing, cut, swatches, hovered, sorted, copied,
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    labels: labels.length, faintest: Math.min(...labels.map((t) => contrast(getComputedStyle(t).fill))),
    faintestSwatch: Math.min(9, ...swatches.map(contrast)),
  };
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["phone, dark", "desk, light"])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_legible_and_alive(name: str, width: int, dark: bool, tmp_path: Path) -> None:
    result = json.loads(after(PAGES[name](), SCRIPT, tmp_path, width, dark))
    found = result["answer"]
    assert result["noted"] == [] and isinstance(found, dict), found
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["wider"] == 0 and found["crossing"] == [] and found["cut"] == []
    assert found["labels"] > 0 and found["faintest"] >= 4.5
    assert len(found["hovered"]) == FIGURES[name] and all(found["hovered"])
    down, up = found["sorted"]
    assert len(set(up)) > 2 and up == sorted(up) and down == sorted(up, reverse=True)
    if name == "bench":
        assert len(set(found["swatches"])) == len(VARIANTS) and found["faintestSwatch"] > 1.7
    if name != "compare":
        assert found["copied"] == [COMMAND, "copied", "selected", COMMAND]


def test_a_variant_has_one_colour_in_page_and_picture() -> None:
    assert COLORS.keys() == VARIANTS.keys()
    result = bench_result()
    data = re.search(r'<script type="application/json" id="figure1-data">(.*?)</script>', result.to_html(), re.DOTALL)
    assert data
    own = re.search(r"--own: (#\w+)", result.to_html())
    assert own
    page = {trace["name"]: trace["marker"]["color"] for trace in json.loads(data[1])["data"]}
    page = {name: own[1] if color == "--own" else color for name, color in page.items()}
    handles, labels = bar_chart(result.rows).axes[0].get_legend_handles_labels()
    assert page == COLORS
    assert {name: handle.patches[0].get_facecolor()[:3] for name, handle in zip(labels, handles, strict=True)} == {
        name: tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)) for name, color in COLORS.items()
    }
