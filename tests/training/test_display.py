"""The display of a run: a table on a terminal, lines in a log, nothing when quiet."""

from __future__ import annotations

import io

import pytest

from satclip_engine.training.results.display import display_for

ROW = {
    "epoch": 3,
    "step": 12,
    "train_loss": 2.5,
    "val_loss": 2.75,
    "learning_rate": 1e-3,
    "place_r1": 0.25,
    "place_r10": 0.5,
    "image_r1": 0.125,
    "image_r10": 0.375,
    "samples_per_second": 1000.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream, *, quiet=False):
    display = display_for(stream, quiet=quiet)
    display.begin(20, 4, [])
    display.step(12, 2.5, 1e-3, 1000.0)
    display.epoch(ROW)
    display.finish()
    return stream.getvalue()


def test_on_a_terminal_a_table_has_the_epochs_and_the_state_of_the_run(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    text = shown(Terminal())
    for fragment in (
        "location→image R@1 R@10",
        "25.0 %  50.0 %",
        "2.7500",
        "step 12 of 20",
        "samples/s",
    ):
        assert fragment in text


def test_a_log_has_a_line_an_epoch():
    assert shown(io.StringIO()) == (
        "satclip-train: epoch 3, step 12 of 20: loss 2.5000, validation 2.7500, R@1 25.0 % location→image "
        "12.5 % image→location, 1000 samples/s\n"
    )


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["log", "terminal"])
def test_quiet_is_silent(stream):
    assert shown(stream, quiet=True) == ""
