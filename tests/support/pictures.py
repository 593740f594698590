"""Makes the pictures of docs/images that the tool itself draws, in headless Chromium: ``make pictures``.

The profile is run anew; the benchmark's page shows the results in benchmarks/results.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from support.browser import CHROMIUM, screenshot

import fused_resnet
from fused_resnet.bench import BenchResult
from fused_resnet.bench.page import results_page

__all__ = ["main", "pages", "shoot"]

FOLDER, RESULTS = Path("docs/images"), Path("benchmarks/results/zen5/resnet.json")
SIZES = {"laptop": (1280, 1500), "phone": (500, 1000)}  # pixels; Chromium has no narrower window
BATCH, IMAGE_SIZE = 16, 224


def main() -> int:
    """The exit code: 1 where there is no Chromium."""
    if CHROMIUM is None:
        print("pictures: expected chromium or google-chrome on PATH, found none", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        for page in pages(Path(folder)):
            shoot(page)
    return 0


def pages(folder: Path) -> list[Path]:
    """Writes the pages to be shown into ``folder``."""
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    profile = fused_resnet.profile.run(fused_resnet.models.resnet50(), images, steps=3, name="resnet50")
    kept = json.loads(RESULTS.read_text())
    result = BenchResult(kept["rows"], kept["environment"])
    for name, html in (("profile", profile.to_html()), ("bench", results_page(result))):
        (folder / f"{name}.html").write_text(html)
    return sorted(folder.glob("*.html"))


def shoot(page: Path) -> None:
    """Pictures of a page, on a laptop and on a phone, light and dark."""
    for device, size in SIZES.items():
        for theme in ("light", "dark"):
            screenshot(page, FOLDER / f"{page.stem}-{device}-{theme}.png", *size, dark=theme == "dark")


if __name__ == "__main__":
    sys.exit(main())
