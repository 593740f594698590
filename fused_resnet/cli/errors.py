"""Errors that the user gets to see as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "CommandError", "end_interrupted", "shown"]

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended


class CommandError(Exception):
    """Ends the command with one line on stderr and this exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def shown(exit_code: int, *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors of these kinds into a CommandError; any other is a defect of ours and keeps its traceback."""
    try:
        yield
    except kinds as error:
        raise CommandError(str(error), exit_code) from error


def end_interrupted(kept: Path | None) -> NoReturn:
    """Ends a command whose results so far are shown, and kept in a file if one was asked for."""
    where = f", also in {kept}" if kept else ""
    raise CommandError(f"interrupted; the results so far are above{where}", INTERRUPTED)
