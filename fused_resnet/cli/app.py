"""The program: its commands, and what becomes of their errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from .bench import bench
from .compare import compare
from .errors import INTERRUPTED, CommandError
from .fuse import fuse
from .info import info
from .profile import profile
from .train import train
from .tune import tune

__all__ = ["main"]

app = typer.Typer(
    name="fused-resnet",
    help="Fused ResNets: the results of stock PyTorch in less memory, in training and inference.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (bench, compare, fuse, info, profile, train, tune):
    app.command()(command)

# The base of errors in arguments: click's, which typer brings along under names that change with its version.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; the exit code: 0 success, 1 a run that failed, 2 bad input, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return app(args=arguments or ["--help"], prog_name="fused-resnet", standalone_mode=False) or 0
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except UsageError as error:
        return _fail(error.format_message(), error.exit_code)  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED


def _fail(message: str, exit_code: int) -> int:
    print("fused-resnet: error:", " ".join(message.split()), file=sys.stderr)
    return exit_code
