"""Errors that a user can correct. The tools show their messages without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Wrong input; the message names the value and the remedy."""


class OptionError(UsageError, ValueError):
    """An option of a model has a value that the model does not take."""


class CheckpointError(UsageError):
    """A checkpoint cannot be read, or does not fit the model."""


class UnreadableError(UsageError):
    """An image or a video cannot be read, or not to its end."""


class PictureError(UsageError):
    """A picture cannot be loaded while a model is trained.

    Args:
        message: names it; may contain the traceback of the worker process that PyTorch adds.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


@contextmanager
def usage_errors_exit(*others: type[Exception]) -> Iterator[None]:
    """Turns a :class:`UsageError` inside the block into its message and exit status 2.

    Args:
        others: further types of errors that the input can cause in this block.
    """
    shown: tuple[type[Exception], ...] = (UsageError, *others)
    try:
        yield
    except shown as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
