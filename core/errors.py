"""Errors of the user's making, which an entry point prints as one message."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the person who runs the suite can mend; the message says what, where, and how.

    Entry points print it and exit with status 2. Any other exception is a fault of the program: it ends in a traceback.
    """
