"""The state that a run is resumed from."""

from __future__ import annotations

import errno
import os

import pytest
from factories.runs import torch

from satclip_engine.errors import OutputError, WeightsError
from satclip_engine.training.loop.state import NEWEST, PREVIOUS, has_state, load_state, save_state


def content(step):
    return {"step": step, "model": {"w": torch.arange(1000.0) + step}}


def test_a_state_is_read_back_to_the_bit_and_the_one_before_is_kept(tmp_path):
    assert not has_state(tmp_path)
    for step in (1, 2, 3):
        save_state(tmp_path, content(step))
    state, note = load_state(tmp_path)
    assert (state["step"], note) == (3, "")
    assert torch.equal(state["model"]["w"], content(3)["model"]["w"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_state_cut_off_falls_back_to_the_one_before_and_says_so(tmp_path, share):
    save_state(tmp_path, content(1))
    save_state(tmp_path, content(2))
    newest = tmp_path / NEWEST
    os.truncate(newest, int(share * newest.stat().st_size))
    state, note = load_state(tmp_path)
    assert state["step"] == 1
    assert "state.pt is damaged or cut off" in note
    assert note.endswith("resuming from the one before, step 1")


def test_a_flipped_bit_is_noticed(tmp_path):
    save_state(tmp_path, content(1))
    save_state(tmp_path, content(2))
    damaged = bytearray((tmp_path / NEWEST).read_bytes())
    damaged[-1000] ^= 1
    (tmp_path / NEWEST).write_bytes(damaged)
    assert load_state(tmp_path)[0]["step"] == 1


def test_when_none_is_whole_the_error_says_what_is_left_to_do(tmp_path):
    (tmp_path / NEWEST).write_bytes(b"")
    (tmp_path / PREVIOUS).write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="none can be resumed: start over with --overwrite"):
        load_state(tmp_path)


def test_a_full_disk_leaves_the_former_state_whole_and_is_said_in_words(tmp_path, monkeypatch):
    save_state(tmp_path, content(1))
    save_state(tmp_path, content(2))

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("satclip_engine.files.os.fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*the checkpoint before is whole"):
        save_state(tmp_path, content(3))
    monkeypatch.undo()
    assert load_state(tmp_path)[0]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST]
