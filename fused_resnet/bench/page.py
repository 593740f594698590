"""The results as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from .plot import bar_chart
from .result import BenchResult
from .table import COLUMNS, FOOTNOTE, caption, cells, group_title, grouped, is_best

__all__ = ["results_page"]

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fused_resnet benchmark</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
  img { max-width: 100%; }
  table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
  caption { text-align: left; font-weight: 600; padding: .3rem .6rem; }
  th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e7eb; text-align: right; }
  th { color: #52606d; font-weight: 500; }
  :is(th, td):first-child { text-align: left; }
  .results { width: 100%; }
  .best td { font-weight: 700; }
  .environment td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
  .note { color: #52606d; font-size: .9rem; }
</style>
<h1>fused_resnet benchmark</h1>
<p>$caption$interrupted</p>
$picture
$tables
<p class="note">$footnote</p>
<h2>Environment</h2>
<table class="environment">$environment</table>
</html>
""")


def results_page(result: BenchResult) -> str:
    """The page: picture, tables and environment. It loads nothing from anywhere."""
    return PAGE.substitute(
        caption=escape(caption(result.rows)),
        interrupted="; interrupted before its end" if result.interrupted else "",
        picture=_picture(result.rows) if result.rows else "",
        tables="\n".join(_table(group) for group in grouped(result.rows)),
        footnote=escape(FOOTNOTE),
        environment=_environment(result.environment),
    )


def _picture(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.BytesIO()
    bar_chart(rows).savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="images per second of each variant" src="data:image/png;base64,{data}">'


def _table(group: Sequence[dict[str, Any]]) -> str:
    head = _line(COLUMNS, "th")
    body = "\n".join(_line(cells(row, group), "td", "best" if is_best(row, group) else "") for row in group)
    return f'<table class="results"><caption>{escape(group_title(group))}</caption>\n{head}\n{body}\n</table>'


def _environment(environment: Mapping[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in environment.items()}
    return "\n".join(_line(item, "td") for item in texts.items())


def _line(texts: Sequence[str], tag: str, row_class: str = "") -> str:
    columns = "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
    return f'<tr class="{row_class}">{columns}</tr>'
