"""The command line, ``fused-resnet``: one module a command. Heavy imports happen inside the commands.

A user's mistake is one line on standard error and exit code 2; an interrupted run that has kept its results exits with
130; a failure of the work itself is one line and exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import Exit, TyperException

from . import bench, fuse, info, train

__all__ = ["main"]

app = typer.Typer(
    name="fused-resnet",
    help="Fused residual networks for PyTorch: benchmark them, swap them in, train them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("bench")(bench.bench)
app.command("fuse")(fuse.fuse)
app.command("train")(train.train)
app.command("info")(info.info)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line on ``arguments`` (None: those of the process) and returns its exit code."""
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="fused-resnet", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Exit as end:
        return end.exit_code
    except TyperException as error:  # an option that is unknown, missing or of another type
        return _fail(error.format_message(), 2)
    except (ValueError, TypeError, ImportError, OSError) as error:
        return _fail(error, 2)
    except RuntimeError as error:
        return _fail(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)


def _fail(error: object, code: int) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"fused-resnet: error: {message}", file=sys.stderr)
    return code
