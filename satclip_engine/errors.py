"""What can go wrong, in words for the person who typed the command.

Every message is one line that says what was given, what was expected and what to do. The command line prints
the message alone (no traceback without `-v`) and exits with `exit_code`.
"""

from __future__ import annotations


class SatclipError(Exception):
    """A failure that the user can act on.

    argument: name of the argument or setting at fault; a command line spells it as its option.
    """

    exit_code = 1

    def __init__(self, *args: object, argument: str | None = None) -> None:
        super().__init__(*args)
        self.argument = argument


class UsageError(SatclipError, ValueError):
    """An argument or option has a value that cannot be used."""

    exit_code = 2


class WeightsError(SatclipError, ValueError):
    """A checkpoint is missing, damaged, hostile or of an unknown layout; file, key and shapes are named."""


class DataError(SatclipError, ValueError):
    """Training data, or features made from them, cannot be used; the files or rows are named."""


class OutputError(SatclipError, OSError):
    """An output cannot be written: it exists, its folder does not, the disk is full."""


class MissingExtra(SatclipError, ImportError):
    """An optional library is not installed; the message says which `pip install` brings it."""
