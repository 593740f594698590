"""Self-contained HTML pages: figures by Plotly, tables that sort and filter. Nothing is loaded from anywhere."""

from .page import Page

__all__ = ["Page"]
