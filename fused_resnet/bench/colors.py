"""The colour of each variant, the same in every picture: red for ours, muted ones for stock, on white and on black."""

from __future__ import annotations

__all__ = ["COLORS"]

COLORS = {
    "fused": "#d1495b",
    "eager": "#a9b4c0",
    "channels_last": "#7c8da3",
    "compile": "#55677a",
    "compile_freeze": "#c3b299",
    "onnxruntime": "#8d7b68",
    "openvino": "#5f7a6b",
}
