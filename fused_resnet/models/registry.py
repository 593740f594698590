"""Models by name, from torchvision, timm and this package.

``NAME`` looks in torchvision, then in :mod:`fused_resnet.models`; ``torchvision:NAME``, ``fused_resnet:NAME`` and
``timm:NAME`` look in one of them only. Nothing is downloaded: every model has random weights.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

__all__ = ["create_model", "find_model"]


class Source(NamedTuple):
    """Where models come from: the names it has and how it builds one. Both raise ImportError where it is absent."""

    names: Callable[[], list[str]]
    create: Callable[..., nn.Module]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """The model of that name with random weights; ``kwargs`` (``num_classes``, ...) go to its constructor.

    Raises ValueError for a name that no source has, with the nearest names, and ImportError where its source is absent.
    """
    source, bare_name = find_model(name)
    return SOURCES[source].create(bare_name, **kwargs)


def find_model(name: str) -> tuple[str, str]:
    """The source that has a model and the model's name there, without building it; raises as :func:`create_model`."""
    prefix, colon, bare_name = name.rpartition(":")
    if colon and prefix not in SOURCES:
        raise ValueError(f"expected a model as NAME or SOURCE:NAME with SOURCE of {', '.join(SOURCES)}, got {name!r}")
    known: list[str] = []
    for source in [prefix] if colon else BARE_NAME_SOURCES:
        try:
            names = SOURCES[source].names()
        except ImportError as error:
            if colon:
                raise ImportError(f"model {name!r} needs {source}, which cannot be imported: {error}") from error
            continue
        if bare_name.partition(".")[0] in names:  # timm writes a weight's tag behind a dot
            return source, bare_name
        known += names
    nearest = difflib.get_close_matches(bare_name, dict.fromkeys(known), n=3, cutoff=0.4)
    written = [f"{prefix}:{found}" if colon else found for found in nearest]
    raise ValueError(f"unknown model {name!r}; nearest: {', '.join(written) or 'none'}")


def _torchvision_names() -> list[str]:
    return importlib.import_module("torchvision").models.list_models()


def _create_torchvision(name: str, **kwargs: Any) -> nn.Module:
    models = importlib.import_module("torchvision").models
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        kwargs.setdefault("weights_backbone", None)
    return models.get_model(name, **{"weights": None, **kwargs})


def _own_names() -> list[str]:
    return importlib.import_module("fused_resnet.models").names()


def _create_own(name: str, **kwargs: Any) -> nn.Module:
    return getattr(importlib.import_module("fused_resnet.models"), name)(**kwargs)


def _timm_names() -> list[str]:
    return importlib.import_module("timm").list_models()


def _create_timm(name: str, **kwargs: Any) -> nn.Module:
    return importlib.import_module("timm").create_model(name, **kwargs)


SOURCES = {
    "torchvision": Source(_torchvision_names, _create_torchvision),
    "fused_resnet": Source(_own_names, _create_own),
    "timm": Source(_timm_names, _create_timm),
}
BARE_NAME_SOURCES = ("torchvision", "fused_resnet")
