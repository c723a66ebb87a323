"""The one error that the tools show without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Something the user can mend; the message names the value and the remedy."""


@contextmanager
def usage_errors_exit() -> Iterator[None]:
    """Turns a :class:`UsageError` inside the block into its message and exit status 2."""
    try:
        yield
    except UsageError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
