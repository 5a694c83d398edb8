"""End of every command: results on stdout, one line on stderr when something fails, and an exit status.

    0  done     1  failed     2  an argument or option cannot be used     130  Ctrl-C     143  terminated

A traceback is shown only with `-v`.
"""

from __future__ import annotations

import codecs
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import click

from satclip_engine.errors import Argument, SatclipError, printable

# Arguments of the library that have another name as options.
OPTION_NAMES = {
    "source": "weights",
    "enc": "weights",
    "path": "atlas",
    "folder": "features",
    "rebuild": "rebuild_features",
}
JSON_FULL = "--json-full"  # --json=full, as click sees it
_JSON = {"--json=full": JSON_FULL, "--json=short": "--json"}
# Characters of our texts in words of ASCII, for terminals that have no others.
ASCII_WORDS = {"σ": "sd", "°": " deg", "×": "x", "·": "-", "…": "...", "−": "-", "—": "-", "²": "^2"}
EXIT_CODES = (
    "Exit status: 0 done; 1 failed; 2 unusable argument or option; 130 interrupted (Ctrl-C); 143 terminated."
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, unwinding like Ctrl-C so that temporary files are put in order."""


class Command(click.Command):
    """A click command whose failures are one line each."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse and run; in `standalone_mode` (the default) exit with a status, after one line on failure."""
        run = partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        name = self.name or "satclip"
        _express_everything()
        status: object = 0
        try:
            status = run()
        except click.ClickException as error:
            message = error.format_message()
            if not (sys.argv[1:] if args is None else args):
                message = f"{message.removesuffix('.')} ({name} --help shows how)"
            status = fail(name, message, error.exit_code)
        except click.Abort as error:
            status = _interrupted(name, error.__cause__)
        _exit(status if isinstance(status, int) else 0)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what click does not know: --json=full, a flag with a value, is a flag of another name.

        And an option of several values takes them in one word too: --bounds -180,-90,180,90.
        """
        if wrong := [word for word in args if word.startswith("--json=") and word not in _JSON]:
            raise click.UsageError(f"{wrong[0]}: give --json or --json=full", ctx)
        return super().parse_args(ctx, _separated(self.params, [_JSON.get(word, word) for word in args]))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command body; turn what it raises into one line and a status."""
        name = self.name or "satclip"
        main_thread = threading.current_thread() is threading.main_thread()  # others may not set handlers
        handler = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
        try:
            with warnings.catch_warnings():
                warnings.showwarning = partial(_note, name)
                return super().invoke(ctx)
        except SatclipError as error:
            _traceback_if_verbose(ctx)
            ctx.exit(fail(name, error.worded(partial(_as_typed, ctx)), error.exit_code))
        except KeyboardInterrupt as error:
            _traceback_if_verbose(ctx)
            ctx.exit(_interrupted(name, error))
        except BrokenPipeError:
            _leave_closed_pipe(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            _traceback_if_verbose(ctx)
            hint = "" if ctx.params.get("verbose") else " (run again with -v for the traceback)"
            ctx.exit(fail(name, f"{type(error).__name__}: {error}{hint}", 1))
        finally:
            if main_thread:
                signal.signal(signal.SIGTERM, handler)


def _separated(params: Sequence[click.Parameter], args: Sequence[str]) -> list[str]:
    """The command line with the values of each option of several in words of their own."""
    counts = {name: param.nargs for param in params if param.nargs > 1 for name in param.opts}
    words: list[str] = []
    joined = 0  # values that the next word may hold
    for word in args:
        name, equals, value = word.partition("=")
        if equals and name in counts:
            words += [name, *_values(value, counts[name])]
        else:
            words += _values(word, joined)
        joined = counts.get(word, 0)
    return words


def _values(word: str, count: int) -> list[str]:
    values = re.split(r"\s*,\s*|\s+", word.strip())
    return values if len(values) == count else [word]


def _exit(status: int) -> NoReturn:
    """End the process. Python aborts (134) when it shuts down while one of our threads is in a kernel."""
    if any(thread.name.startswith("satclip-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def fail(name: str, message: str, status: int) -> int:
    """Say in one line on stderr why `name` failed; returns `status`."""
    say_line(f"{name}: {message}")
    return status


def show(text: str) -> None:
    """Print a result, which may hold names from files, on stdout."""
    click.echo(printable(text))


def say_line(text: str) -> None:
    """Print one line on stderr."""
    click.echo(printable(" ".join(text.split())), err=True)


def _express_everything() -> None:
    """Let no character that a terminal's encoding lacks end a command whose work is done."""
    codecs.register_error("satclip-words", _in_words)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(
            stream, "reconfigure"
        ):
            stream.reconfigure(errors="satclip-words")


def _in_words(error: UnicodeError) -> tuple[str, int]:
    """Words or escapes for characters that an encoding lacks; a handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    words = (ASCII_WORDS.get(letter) or ascii(letter)[1:-1] for letter in letters)
    return "".join(words), error.end


def _as_typed(ctx: click.Context, argument: Argument) -> str | None:
    """The option of an argument, with its value, as it is typed; None where the command has none."""
    name = OPTION_NAMES.get(argument.name, argument.name)
    option = next((option for option in ctx.command.params if option.name == name), None)
    if option is None or not isinstance(option, click.Option):
        return None
    flag = max(option.opts, key=len)
    return flag if argument.value is None or option.is_flag else f"{flag} {argument.value}"


def _note(name: str, message: Warning | str, *where: Any) -> None:
    say_line(f"{name}: note: {message}")


def _interrupted(name: str, error: BaseException | None) -> int:
    terminated = isinstance(error, Terminated)
    message = str(error or "") or ("terminated" if terminated else "interrupted")
    return fail(name, message, 143 if terminated else 130)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _traceback_if_verbose(ctx: click.Context) -> None:
    if ctx.params.get("verbose"):
        traceback.print_exc()


def _leave_closed_pipe(ctx: click.Context) -> NoReturn:
    """The reader of our output (`head`, say) has left: be silent, as Unix tools are."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    ctx.exit(1)
