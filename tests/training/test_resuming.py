"""Runs that are resumed with another length, and folders that two processes want."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories.runs import random_features, small_config, torch

from satclip_engine.cli.train import main
from satclip_engine.errors import OutputError, UsageError, WeightsError
from satclip_engine.training.inputs import TrainingInputs
from satclip_engine.training.loop.state import NEWEST, load_state
from satclip_engine.training.session import resolve_settings, train

pytestmark = pytest.mark.filterwarnings(
    r"ignore:\d+ (held-out|training) samples", "ignore:ema ", "ignore:a patience", "ignore:validation every"
)
RESTLESS = {"dropout": 0.3, "feature_noise": 0.2, "ema": 0.9, "batch_size": 16}  # 5 steps an epoch of 90


def rows(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def run(folder, *, resume=False, **settings):
    return train(small_config(**(RESTLESS | settings)), random_features(100), folder, resume=resume)


def assert_equal_runs(first, second):
    a, b = (load_state(folder)[0] for folder in (first, second))
    assert a["step"] == b["step"]
    assert a["stale"] == b["stale"]
    for part in ("model", "average"):
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), name
    for name, value in a["best"]["model"].items():
        assert torch.equal(value, b["best"]["model"][name]), name
    assert a["best"]["step"] == b["best"]["step"]
    names = ("epoch", "step", "train_loss", "val_loss", "place_r1", "learning_rate", "gain")
    logs = [[[row[name] for name in names] for row in rows(folder)] for folder in (first, second)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(("pieces", "every"), [([2, 4], 1), ([1, 2, 3, 4], 1), ([1, 3, 4], 2)])
def test_a_run_that_goes_on_for_more_epochs_is_one_that_was_that_long(tmp_path, pieces, every):
    settings = {"check_val_every_n_epoch": every, "learning_rate": 0.02}
    run(tmp_path / "whole", max_epochs=4, **settings)
    for number, epochs in enumerate(pieces):
        run(tmp_path / "longer", max_epochs=epochs, resume=number > 0, **settings)
        assert rows(tmp_path / "longer")[-1]["val_loss"], "what there is so far is validated"
    assert_equal_runs(tmp_path / "whole", tmp_path / "longer")


@pytest.mark.parametrize("steps", [[7], [3, 4, 13], [5, 12]])
def test_a_run_cut_off_within_an_epoch_goes_on_without_a_trace(tmp_path, steps):
    settings = {"max_epochs": 4, "patience": 3, "learning_rate": 0.02}
    run(tmp_path / "whole", **settings)
    for number, count in enumerate(steps):
        done = run(tmp_path / "cut", max_steps=count, resume=number > 0, **settings)
        assert done.outcome.last.step == count
        assert done.outcome.epochs == count / 5
        assert int(rows(tmp_path / "cut")[-1]["step"]) == count, "what there is so far is validated"
        assert int(rows(tmp_path / "cut")[-1]["epoch"]) == math.ceil(count / 5)
    run(tmp_path / "cut", resume=True, **settings)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"max_epochs": 2}, {"max_epochs": 4}),
        ({"max_epochs": 4, "max_steps": 6}, {"max_epochs": 4, "max_steps": 12}),
        ({"max_epochs": 4, "max_steps": 6}, {"max_epochs": 4}),
    ],
)
def test_a_cosine_schedule_is_not_extended(tmp_path, before, now):
    run(tmp_path, schedule="cosine", **before)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"}
    step = load_state(tmp_path)[0]["step"]
    total = now.get("max_steps", 5 * now["max_epochs"])
    last, next_one = (
        3e-3 * 0.5 * (1 + math.cos(math.pi * done / length))
        for done, length in ((step - 1, step), (step, total))
    )
    message = (
        rf"cosine schedule ends at step {step} \({step / 5:.3g} epochs\); to end at step {total}, its "
        rf"learning rate would go from {last:.2g} to {next_one:.2g} at step {step + 1}, .*leave out "
        "max_epochs and max_steps"
    )
    with pytest.raises(UsageError, match=message):
        run(tmp_path, schedule="cosine", resume=True, **now)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"}
    assert run(tmp_path, schedule="cosine", resume=True, **before).was_complete


def test_a_cosine_schedule_is_not_shortened_either(tmp_path, material):
    cosine = ["--schedule", "cosine"]
    material[0] = Interrupting(random_features(100), 12)
    assert satclip_train("--out", "run", *SMALL, *cosine, "--epochs", 4).exit_code == 130
    material[0] = random_features(100)
    result = satclip_train("--out", "run", "--resume", "--epochs", 3)
    assert result.exit_code == 2
    assert "leave out --epochs and --max-steps to resume it as planned" in result.stderr.splitlines()[-1]
    assert satclip_train("--out", "run", "--resume").exit_code == 0
    assert tomllib.loads(Path("run/config.toml").read_text())["max_epochs"] == 4


def test_fewer_epochs_than_are_trained_change_nothing(tmp_path):
    run(tmp_path, max_epochs=3)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = run(tmp_path, max_epochs=1, resume=True)
    assert done.was_complete
    assert done.outcome.last.step == 15
    for name in ("config.toml", NEWEST, "log.csv"):
        assert (tmp_path / name).read_bytes() == files[name], name
    assert tomllib.loads((tmp_path / "config.toml").read_text())["max_epochs"] == 3


def test_a_state_of_former_rules_is_refused_in_words(tmp_path):
    run(tmp_path, max_epochs=1)
    for path in (tmp_path / NEWEST, tmp_path / "state.previous.pt"):
        path.write_bytes(path.read_bytes().replace(b"satclip-train state 2\n", b"satclip-train state 1\n", 1))
    with pytest.raises(WeightsError, match=r"state\.pt is of another version.*start over with --overwrite"):
        run(tmp_path, max_epochs=2, resume=True)


def test_the_image_encoders_weights_are_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"image_encoder": "resnet18", "image_weights": "moco.pth"}
    config = resolve_settings(tmp_path / "run", resume=False, overwrite=False, flags=flags)
    assert config.image_weights == str(tmp_path / "moco.pth")
    train(
        small_config(image_encoder="resnet18", image_weights=config.image_weights),
        random_features(100),
        tmp_path / "run",
    )
    monkeypatch.chdir("/")
    assert (
        resolve_settings(tmp_path / "run", resume=True, overwrite=False).image_weights == config.image_weights
    )
    with pytest.raises(UsageError, match=r"--image-weights .* there"):
        resolve_settings(tmp_path / "run", resume=True, overwrite=False, flags=flags)


SMALL = "--legendre-polys 5 --capacity 16 --embed-dim 8 --dropout 0 --batch-size 16 --threads 1 -q".split()  # noqa: SIM905


@pytest.fixture
def material(monkeypatch, tmp_path):
    """Random features in place of DATA's; the test may put others into the list."""
    monkeypatch.chdir(tmp_path)
    made = [random_features(100)]
    monkeypatch.setattr(
        "satclip_engine.training.inputs.training_inputs",
        lambda *args, **more: TrainingInputs(made[0], None, "made", {}),
    )
    return made


class Interrupting(type(random_features())):
    """Features that interrupt this process when a batch is read for the nth time."""

    def __init__(self, features, reads):
        super().__init__(features.lonlat, features._values)
        self._left = reads

    def batch(self, indices, views):
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), 2)
        return super().batch(indices, views)


def satclip_train(*args):
    return CliRunner().invoke(main, ["data", *map(str, args)])


HOLDING = """
import sys
from dataclasses import replace
from pathlib import Path
from satclip_engine.training.session import held_run
with held_run(Path("run")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path):
    """The number of another process that trains in run/."""
    command = [sys.executable, "-c", HOLDING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.stdin.close()


def test_a_run_in_a_folder_that_another_process_trains_in_is_refused_in_one_line(
    tmp_path, material, other_process
):
    run(tmp_path / "elsewhere", max_epochs=1)
    for name in ("config.toml", "log.csv", NEWEST):
        (tmp_path / "run" / name).write_bytes((tmp_path / "elsewhere" / name).read_bytes())
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for how in ("--resume", "--overwrite"):
        result = satclip_train("--out", "run", how, "-q")
        assert result.exit_code == 1
        assert result.stderr.splitlines() == [
            f"satclip-train: another run (process {other_process}) is writing to run: wait until it has ended"
        ]
    with pytest.raises(OutputError, match=f"process {other_process}"):
        run(tmp_path / "run", max_epochs=2)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_a_refused_run_leaves_no_folder_and_a_finished_one_leaves_what_is_not_its_own(tmp_path, material):
    material[0] = random_features(1)
    assert satclip_train("--out", "run", *SMALL).exit_code == 2
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    for name in ("notes.txt", "tensorboard/mine.txt"):
        (tmp_path / "run" / name).write_text("mine")
    material[0] = random_features(100)
    for how in ([], ["--overwrite"]):
        assert satclip_train("--out", "run", *SMALL, "--epochs", 1, "--tensorboard", *how).exit_code == 0
        for name in ("notes.txt", "tensorboard/mine.txt"):
            assert (tmp_path / "run" / name).read_text() == "mine"
        assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, material, monkeypatch):
    def denied(*args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("satclip_engine.training.session.locked_folder", denied)
    result = satclip_train("--out", "run", *SMALL)
    assert (result.exit_code, result.stderr) == (1, "satclip-train: cannot write run: Permission denied\n")
