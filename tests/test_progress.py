"""Progress: a bar on a terminal, a few lines in a log, nothing when quiet."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest

from satclip_engine import progress
from satclip_engine.errors import DataError, UsageError, WeightsError, one_line, printable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_stage_share_and_rate_and_then_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    bar = progress.progress_for(stream, quiet=False)
    bar.stage("computing")
    bar.start(1000)
    for _ in range(4):
        time.sleep(0.06)
        bar.advance(250)
    bar.finish()
    bar.finish()
    shown = stream.getvalue()
    assert "computing" in shown
    assert "px/s" in shown
    assert "%" in shown


def test_a_log_gets_a_line_a_stage_and_one_every_half_minute(monkeypatch):
    clock = iter(np.arange(0, 1e4, 10.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    lines = progress.progress_for(stream, quiet=False)
    lines.stage("computing")
    lines.start(1_000_000)
    for _ in range(9):
        lines.advance(100_000)
    lines.stage("assembling")
    said = stream.getvalue().splitlines()
    assert said[0] == "satclip-grid: computing"
    assert said[-1] == "satclip-grid: assembling"
    assert len(said) == 5
    assert "30 %" in said[1]
    assert "10 k px/s" in said[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(950, "950 px/s"), (123_456, "123 k px/s"), (2.5e6, "2.5 M px/s"), (3e9, "3 G px/s")],
)
def test_rates_have_three_digits(value, text):
    assert progress.rate_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(3.21, "3.2 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_have_the_units_people_use(value, text):
    assert progress.duration_text(value) == text


HOSTILE = "a\x1b]0;mine\x07b\x9b2J\u202ec [red]d"


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_stage_that_speaks_of_a_file_commands_no_terminal(monkeypatch, kind):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    stream = kind()
    bar = progress.progress_for(stream, quiet=False)
    bar.start(10)
    bar.stage(f"{HOSTILE}; {HOSTILE}")
    bar.finish()
    shown = stream.getvalue()
    assert "\x1b]0;" not in shown
    assert not set("\x07\x9b\u202e") & set(shown)
    assert r"a\x1b]0;mine\x07b\x9b2J\u202ec [red]d" in shown


def test_messages_show_control_characters_of_files_as_escapes():
    for message in (UsageError(HOSTILE, "\nsecond"), WeightsError(HOSTILE), DataError(HOSTILE)):
        assert r"a\x1b]0;mine\x07b\x9b2J\u202ec" in str(message)
        assert r"a\x1b]0;mine\x07b\x9b2J\u202ec" in message.worded(lambda _: None)
    assert one_line(ValueError(" a\n\x00 b ")) == r"a \x00 b"
    assert one_line(ValueError()) == "ValueError"
    assert printable("Zürich\n\udcff") == "Zürich\n\\xff"
