"""A page in headless Chromium: what it logs, and what it looks like after something was done to it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

__all__ = ["CHROMIUM", "after", "screenshot"]

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000")

# Before all else: every error and every request that leaves the page is noted. After all else: the test's own script.
BEFORE = """<script>
window.noted = [];
window.addEventListener("error", (e) => noted.push(String(e.message)));
window.addEventListener("unhandledrejection", (e) => noted.push(String(e.reason)));
for (const kind of ["error", "warn"]) console[kind] = (...a) => noted.push(`${kind}: ${a.join(" ")}`);
</script>"""
AFTER = """<script>
window.addEventListener("load", () => setTimeout(async () => {
  let answer;
  try { answer = await (async () => { %s })(); } catch (e) { answer = `threw ${e}`; }
  top.document.getElementById("answer").textContent = JSON.stringify({answer, noted});
}, 500));
</script>"""
# A window is at least 500 pixels wide, a frame in it as narrow as one likes. Its colours are those that the host has.
HOST = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><pre id="answer"></pre>
<iframe srcdoc="%s" style="width:%dpx;height:900px;border:0"></iframe>"""


def after(page: str, script: str, folder: Path, width: int = 1280, dark: bool = False) -> str:
    """JSON of what ``script``, a function's body, returns when it is run in the page, and of what the page noted."""
    head, body = page.split("<style>", 1)
    path = folder / "page.html"
    path.write_text(HOST % (escape(f"{head}{BEFORE}<style>{body}{AFTER % script}"), width))
    size = f"--window-size={width + 100},1000"
    command = [str(CHROMIUM), *OPTIONS, *_theme(dark), size, "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="answer">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page did not answer"
    return unescape(found[1])


def screenshot(page: Path, picture: Path, width: int, height: int, dark: bool = False) -> None:
    """A PNG of the page."""
    size = f"--window-size={width},{height}"
    command = [str(CHROMIUM), *OPTIONS, *_theme(dark), size, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)


def _theme(dark: bool) -> list[str]:
    return ["--blink-settings=preferredColorScheme=0"] if dark else []
