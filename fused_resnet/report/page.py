"""A page as one string: its parts in order, the style, the script and Plotly's JavaScript within it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Cell", "Page", "framed", "require_plotly"]

FOLDER = Path(__file__).parent
LEAST_FILTERED = 10  # rows; fewer are seen at a glance
EXTRA = "pip install 'fused-resnet[report]'"


def framed(page: str) -> str:
    """A page in a frame of its own, for a notebook, so that its style and the notebook's do not meet."""
    return f'<iframe srcdoc="{escape(page)}" style="width:100%;height:60rem;border:0"></iframe>'


class Cell(NamedTuple):
    """A cell's text, and what it sorts by."""

    text: str
    value: float | None


def require_plotly() -> Any:
    """Plotly's module with its JavaScript. Raises ImportError that says how to get it."""
    try:
        return import_module("plotly.offline")
    except ImportError as error:
        raise ImportError(f"an HTML page needs plotly, which cannot be imported: {error}; {EXTRA}") from error


class Page:
    """A page that is built part by part, in the order of the calls; :meth:`html` gives it whole."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(subtitle)}</p>']
        self._count = 0

    def cards(self, cards: Sequence[tuple[str, str, str]]) -> None:
        """Big numbers: label, value and a note each."""
        boxes = (
            f'<div class="card">{escape(label)}<b>{escape(value)}</b><span class="note">{escape(note)}</span></div>'
            for label, value, note in cards
        )
        self._parts.append(f'<div class="cards">{"".join(boxes)}</div>')

    def figure(self, title: str, data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], note: str = "") -> None:
        """A Plotly figure; a colour ``--name`` is that of the style sheet."""
        name = self._name("figure")
        content = json.dumps({"data": data, "layout": layout}).replace("</", "<\\/")
        self._head(title, note)
        self._parts.append(f'<div class="figure" id="{name}"></div>')
        self._parts.append(f'<script type="application/json" id="{name}-data">{content}</script>')

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str | Cell]],
        note: str = "",
        best: Sequence[int] = (),
    ) -> None:
        """A table that sorts by each column and, if it is long, filters by words; ``best`` are the rows in bold."""
        name = self._name("table")
        head = "".join(f'<th scope="col"><button type="button">{escape(c)}</button></th>' for c in columns)
        body = "\n".join(
            f"<tr{' class=best' if i in best else ''}>{''.join(map(_cell, row))}</tr>" for i, row in enumerate(rows)
        )
        self._head(title, note)
        if len(rows) >= LEAST_FILTERED:
            label = escape(f"filter {title}")
            self._parts.append(f'<input type="search" data-table="{name}" placeholder="filter" aria-label="{label}">')
        self._parts.append(
            f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead>'
            f"<tbody>\n{body}\n</tbody></table></div>"
        )

    def facts(self, title: str, facts: Mapping[str, Any]) -> None:
        """Names and values, JSON for what is no text."""
        texts = ((key, value if isinstance(value, str) else json.dumps(value)) for key, value in facts.items())
        rows = "\n".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in texts)
        self._head(title, "")
        self._parts.append(f'<table class="facts">{rows}</table>')

    def command(self, command: str) -> None:
        """The command that makes this page again."""
        self._head("Again", "")
        self._parts.append(
            f'<div class="command"><code>{escape(command)}</code><button type="button">copy</button></div>'
        )

    def html(self) -> str:
        """The page. Raises ImportError where it has a figure and plotly is missing."""
        style, script = ((FOLDER / name).read_text() for name in ("page.css", "page.js"))
        plotly = require_plotly().get_plotlyjs()
        head = (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n"
        )
        parts = "\n".join(self._parts)
        return f"{head}{parts}\n<script>{plotly}</script>\n<script>\n{script}</script>\n</html>\n"

    def _head(self, title: str, note: str) -> None:
        self._parts.append(f"<h2>{escape(title)}</h2>" + (f'<p class="note">{escape(note)}</p>' if note else ""))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    value = "" if cell.value is None else f"{cell.value:.9g}"
    return f'<td data-value="{value}">{escape(cell.text)}</td>'
