"""A copy of the Triton backend with one line of its source changed: a planted bug."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fused_resnet.backends import triton as backend

__all__ = ["planted"]


@contextmanager
def planted(folder: Path, module: str, before: str, after: str) -> Iterator[ModuleType]:
    """The backend with ``before``, which must occur once in ``module``, replaced by ``after``; lives in ``folder``."""
    copy = folder / "mutant"
    shutil.copytree(Path(backend.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / f"{module}.py").read_text()
    if source.count(before) != 1:
        raise ValueError(f"{module}.py: expected one {before!r}, got {source.count(before)}")
    (copy / f"{module}.py").write_text(source.replace(before, after))
    name = "fused_resnet.backends.mutant"
    spec = importlib.util.spec_from_file_location(name, copy / "__init__.py", submodule_search_locations=[str(copy)])
    assert spec is not None and spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    sys.modules[name] = mutant
    try:
        spec.loader.exec_module(mutant)
        yield mutant
    finally:
        for loaded in [m for m in sys.modules if m.startswith(name)]:
            del sys.modules[loaded]
