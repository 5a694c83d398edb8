"""Several processes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories.runs import random_features, small_config, torch

from satclip_engine.errors import UsageError
from satclip_engine.training.loop.distributed import ProcessContext, join_processes
from satclip_engine.training.loop.state import load_state
from satclip_engine.training.loop.trainer import Trainer
from satclip_engine.training.session import train

# An odd batch, so that the processes hold unequal parts of it.
SETTINGS = {"max_epochs": 4, "batch_size": 15, "feature_noise": 0.2, "ema": 0.8}

SCRIPT = """
import sys
from pathlib import Path
from factories.runs import random_features, small_config
from satclip_engine.training.loop.distributed import join_processes
from satclip_engine.training.session import train
with join_processes("cpu") as processes:
    done = train(small_config(**{settings!r}), random_features(50), Path({folder!r}), processes=processes)
    print(processes.rank, len(done.files), done.outcome.best.epoch, done.outcome.history[-1]["val_loss"])
"""


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    folder = tmp_path / "two"
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(settings=SETTINGS, folder=str(folder)))
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    train(small_config(**SETTINGS), random_features(50), tmp_path / "one")
    one, two = (load_state(tmp_path / name)[0] for name in ("one", "two"))
    assert one["step"] == two["step"] == 12
    # Sums over a batch are added in another order; AdamW turns a gradient near 0 into a step of any sign.
    for part in ("model", "average"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-4, atol=3e-5, msg=f"{part} {name}")
    for before, after in zip(one["history"], two["history"], strict=True):
        assert after["train_loss"] == pytest.approx(before["train_loss"], rel=1e-5)
        assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-4)
    lines = sorted(line.split() for line in done.stdout.splitlines() if line[:1].isdigit())
    assert [line[:2] for line in lines] == [["0", "4"], ["1", "0"]], "only the first process writes"
    assert lines[0][2:] == lines[1][2:], "both know the same scores"


def test_more_processes_than_samples_in_a_batch_are_an_error(tmp_path):
    processes = ProcessContext(torch.device("cpu"), rank=0, world_size=20)
    with pytest.raises(UsageError, match="batch_size: 16 samples a step are fewer than 20 processes"):
        Trainer(small_config(), random_features(), tmp_path, processes=processes)


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "mps"])
def test_an_unknown_device_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(UsageError, match="device: expected auto, cpu, cuda or cuda:N"), join_processes(name):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_an_error():
    with (
        pytest.raises(UsageError, match="device 'cuda': this machine has no CUDA device"),
        join_processes("cuda"),
    ):
        pass
