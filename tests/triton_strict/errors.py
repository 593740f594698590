"""The one error of the strict interpreter."""

__all__ = ["KernelError"]


class KernelError(AssertionError):
    """A kernel did what a GPU would not forgive, or would hide."""
