"""Exceptions of the package, worded for the person who typed the command or the call.

Every message is one line that says what was given, what was expected and what to do. The command line prints
the message alone (no traceback without `-v`) and exits with `exit_code`.

An error names the argument that it refuses (`argument="blocksize"`), and a message holds an `Argument` where
it speaks of another one, so that each reader meets arguments as they type them:

    UsageError("4 is no multiple of 16", argument="blocksize")     --blocksize: 4 is no multiple of 16
    OutputError("… or use ", Argument("overwrite", True))          … or use --overwrite
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNPRINTED = ("Cc", "Cf", "Zl", "Zp")  # Unicode's categories of control characters and line ends


class Argument:  # dataclasses, imported for this alone, would triple the time to import the package
    """An argument that a message speaks of, alone or with the value to give: overwrite=True in Python."""

    def __init__(self, name: str, value: object = None) -> None:
        self.name, self.value = name, value

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value!r}"


def listed(arguments: Sequence[Argument]) -> list[str | Argument]:
    """Pieces of a message: one and two and three."""
    pieces = [piece for argument in arguments for piece in (" and ", argument)]
    return pieces[1:]


def printable(text: str) -> str:
    """Text without what terminals obey: control characters, which files and their names may hold, as escapes.

    Bytes of file names that are no UTF-8 become escapes, too. Lines stay lines.
    """
    if text.isprintable():
        return text
    try:
        text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # other halves of characters
        text = text.encode(errors="backslashreplace").decode()
    import unicodedata

    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in _UNPRINTED and letter != "\n" else letter
        for letter in text
    )


def one_line(message: object) -> str:
    """A message as one line of printable text; an exception without any is its name."""
    text = printable(" ".join(str(message).split()))
    return type(message).__name__ if isinstance(message, BaseException) and not text else text


class SatclipError(Exception):
    """A failure that the user can act on; `argument` is the one that was refused, if it was one."""

    exit_code = 1

    def __init__(self, *message: object, argument: str | None = None) -> None:
        super().__init__(printable("".join(map(str, message))))
        self.message, self.argument = message, argument

    def worded(self, option: Callable[[Argument], str | None]) -> str:
        """The message for whoever types options: `option` gives their names, None where there is none.

        It begins with the option that was refused, unless it speaks of it anyway.
        """
        mentioned = [piece for piece in self.message if isinstance(piece, Argument)]
        text = "".join(
            option(piece) or str(piece) if isinstance(piece, Argument) else str(piece)
            for piece in self.message
        )
        text = printable(text)
        name = option(Argument(self.argument)) if self.argument else None
        if name is None:
            return text
        rest = text.removeprefix(str(self.argument))
        if rest != text and rest[:1] in (" ", ":"):
            return f"{name}{rest}"
        return text if self.argument in [piece.name for piece in mentioned] else f"{name}: {text}"


class UsageError(SatclipError, ValueError):
    """An argument or option has a value that cannot be used."""

    exit_code = 2


def refuse_both(**arguments: object) -> None:
    """Raise UsageError when two arguments that exclude each other are both given: neither None nor False."""
    if all(value is not None and value is not False for value in arguments.values()):
        first, second = map(Argument, arguments)
        raise UsageError(
            first, " and ", second, " are mutually exclusive: give one of them", argument=second.name
        )


class WeightsError(SatclipError, ValueError):
    """A checkpoint is missing, damaged, hostile or of an unknown layout; file, key and shapes are named."""


class DataError(SatclipError, ValueError):
    """Training data, or features made from them, cannot be used; the files or rows are named."""


class OutputError(SatclipError, OSError):
    """An output cannot be written: it exists, its folder does not, the disk is full."""


class MissingExtra(SatclipError, ImportError):
    """An optional library is not installed; the message says which `pip install` brings it."""
