"""Choices measured on a device, kept across runs: one file for all backends, safe among many processes.

The file is JSON, ``{"version": 1, "choices": {key: choice}}``, in ``$XDG_CACHE_HOME/fused_resnet`` (``~/.cache``
without it), or where ``FUSED_RESNET_TUNE_FILE`` says. A writer takes a lock, reads, adds its own, and replaces the file
in one step, so no reader sees half of one and no writer loses another's. A file that cannot be read counts as empty,
with a warning, and is replaced at the next write.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import warnings
from functools import cache, lru_cache
from pathlib import Path

import torch

__all__ = ["clear_cache", "device_name", "has_choices", "key", "lookup", "store", "tune_file"]

VERSION = 1


def tune_file() -> Path:
    """Where choices are kept."""
    asked = os.environ.get("FUSED_RESNET_TUNE_FILE")
    if asked:
        return Path(asked)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fused_resnet" / "tune.json"


@cache
def device_name(device: torch.device) -> str:
    """What results depend on: the model of a GPU, else the device's type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@lru_cache(4096)
def key(backend: str, device: torch.device, slot: str, dtype: torch.dtype, *shape: object) -> str:
    """One line for a choice: what is chosen (``slot``), on which device, for which type and shape."""
    sizes = " ".join("x".join(map(str, s)) if isinstance(s, (tuple, torch.Size)) else str(s) for s in shape)
    return f"{backend} | {device_name(device)} | {slot} | {str(dtype).removeprefix('torch.')} | {sizes}"


def has_choices() -> bool:
    """Whether the file holds anything."""
    return bool(_kept())


def lookup(line: str) -> str | None:
    """The choice kept under a :func:`key`, or None. The file is read once in a process."""
    return _kept().get(line)


def store(choices: dict[str, str]) -> None:
    """Adds choices by :func:`key` to the file, those of other processes staying; OSError where it cannot be written."""
    path = tune_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        document = {"version": VERSION, "choices": {**_read(path), **choices}}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
            try:
                json.dump(document, file, indent=1, sort_keys=True)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    clear_cache()


def clear_cache() -> None:
    """Forgets what was read: the next lookup reads the file again."""
    _kept.cache_clear()


@cache  # every call of an op asks: not even the environment is looked at again
def _kept() -> dict[str, str]:
    return _read(tune_file())


def _read(path: Path) -> dict[str, str]:
    try:
        document = json.loads(path.read_text())
        if document["version"] != VERSION:
            raise ValueError(f"expected version {VERSION}, got {document['version']}")
        return {str(k): str(v) for k, v in document["choices"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"fused_resnet ignores {path}: {error!r}", RuntimeWarning, stacklevel=2)
        return {}
