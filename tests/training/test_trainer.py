"""Whole runs on small material: how they learn, stop, fail and go on."""

from __future__ import annotations

import csv
import errno
import os
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from factories.runs import Signalling, random_features, small_config, torch

from satclip_engine.backends import cpu
from satclip_engine.errors import MissingExtra, OutputError, UsageError
from satclip_engine.training.loop.interrupts import RunStopped
from satclip_engine.training.loop.model import gains
from satclip_engine.training.loop.state import NEWEST, load_state
from satclip_engine.training.loop.trainer import Diverged, Trainer
from satclip_engine.training.session import resolve_settings, train
from satclip_engine.weights import read_weights

# Everything random is in use, so that nothing of it can be forgotten in a state.
RESTLESS = {"dropout": 0.3, "feature_noise": 0.2, "ema": 0.9, "schedule": "cosine", "warmup_steps": 2}

# Notes that runs as short as these give.
SHORT_RUN = "[0-9]+ (held-out|training) samples|ema |a warm-up "


def run(folder, config, data=None, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", SHORT_RUN)
        return train(config, data or random_features(), folder, **more)


def log(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_weights(first: Path, second: Path):
    a, b = (load_state(folder)[0] for folder in (first, second))
    assert a["step"] == b["step"]
    for part in ("model", "average"):
        for name in a[part] or {}:
            assert torch.equal(a[part][name], b[part][name]), f"{part} {name}"


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=pytest.mark.triton)])
def test_a_backend_trains_as_another(tmp_path, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    settings = {"dropout": 0.5, "max_steps": 2, "coordinate_jitter": 0.0}
    losses = {}
    for name in ("reference", backend):
        with np.errstate(all="ignore"):  # Triton's interpreter computes masked lanes by NumPy, too
            run(tmp_path / name, small_config(backend=name, **settings))
        rows = log(tmp_path / name)
        losses[name] = [[float(row[key]) for key in ("train_loss", "val_loss")] for row in rows]
    assert len(losses[backend]) == 2
    np.testing.assert_allclose(losses[backend], losses["reference"], rtol=1e-5)


def test_a_backend_that_cannot_compute_there_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "_C", None)
    monkeypatch.setattr(cpu, "MISSING", "no kernels", raising=False)
    with pytest.raises(MissingExtra, match="backend: backend 'cpu' cannot run here: no kernels"):
        Trainer(small_config(backend="cpu"), None, tmp_path)
    with pytest.raises(UsageError, match="backend: expected one of auto, triton, cpu, reference, got"):
        small_config(backend="cuda")


def test_a_run_learns_twenty_random_pairs_by_heart(tmp_path):
    config = small_config(val_random_split_fraction=0.0, max_epochs=60, batch_size=20)
    done = run(tmp_path, config)
    scores = done.outcome.best.scores
    assert (scores.place_r1, scores.image_r1, scores.samples) == (1.0, 1.0, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.ckpt",
        "best.safetensors",
        "config.toml",
        "last.ckpt",
        "lock",
        "log.csv",
        "state.previous.pt",
        "state.pt",
        "training.png",
    ]
    assert {path.name for path in done.files} == {
        "best.ckpt",
        "best.safetensors",
        "last.ckpt",
        "training.png",
    }
    rows = log(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(1, 61))
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, small_config(seed=seed, max_epochs=2, **RESTLESS))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    first, other = (load_state(tmp_path / name)[0]["model"] for name in "ac")
    assert not torch.equal(first["projection.weight"], other["projection.weight"])


def test_a_run_killed_in_the_middle_and_resumed_ends_with_the_weights_of_one_that_was_not(tmp_path):
    config = {"max_epochs": 6, "checkpoint_minutes": 0.0, **RESTLESS}
    run(tmp_path / "whole", small_config(**config), random_features(50))
    code = f"""
import signal
from pathlib import Path
from factories.runs import Signalling, random_features, small_config
from satclip_engine.training.session import train
data = Signalling(random_features(50), signal.SIGKILL, 12)
train(small_config(**{config!r}), data, Path({str(tmp_path / "killed")!r}))
"""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", code], env=here, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    reached = load_state(tmp_path / "killed")[0]["step"]
    assert 3 <= reached < 12, "it was to be killed inside an epoch, with a state behind it"
    run(tmp_path / "killed", small_config(**config), random_features(50), resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    rows, expected = log(tmp_path / "killed"), log(tmp_path / "whole")
    for name in ("epoch", "step", "train_loss", "val_loss", "learning_rate"):
        assert [row[name] for row in rows] == [row[name] for row in expected]


def test_a_run_resumed_from_a_state_cut_in_half_goes_on_from_the_one_before(tmp_path):
    config = small_config(max_epochs=4, checkpoint_minutes=0.0, **RESTLESS)
    run(tmp_path / "whole", config)
    with pytest.raises(RunStopped):
        run(tmp_path / "cut", config, Signalling(random_features(), signal.SIGINT, 6))
    newest = tmp_path / "cut" / NEWEST
    os.truncate(newest, newest.stat().st_size // 2)
    with pytest.warns(UserWarning, match=r"damaged or cut off.*resuming from the one before, step"):
        train(config, random_features(), tmp_path / "cut", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_writes_what_it_has(tmp_path, number):
    before = signal.getsignal(number)
    data = Signalling(random_features(), number, 8)
    with pytest.raises(RunStopped, match=r"stopped after step \d+ of 50: resume with --resume") as stopped:
        run(tmp_path, small_config(max_epochs=50), data)
    assert stopped.value.signal == number
    assert signal.getsignal(number) == before
    step = load_state(tmp_path)[0]["step"]
    assert 0 < step < 50
    assert read_weights(tmp_path / "last.ckpt").provenance.extras["global_step"] == step


def test_a_finished_run_that_is_resumed_does_nothing_more(tmp_path):
    config = small_config(max_epochs=2)
    run(tmp_path, config)
    before = log(tmp_path)
    assert run(tmp_path, config, resume=True).was_complete
    assert log(tmp_path) == before
    longer = run(tmp_path, small_config(max_epochs=3), resume=True)
    assert not longer.was_complete
    assert longer.outcome.last.step == 3


def test_a_run_of_other_settings_or_data_is_not_resumed(tmp_path):
    run(tmp_path, small_config(max_epochs=1))
    message = r"other settings: capacity \(32 there, 16 now\), seed \(0 there, 5 now\)"
    with pytest.raises(UsageError, match=message):
        run(tmp_path, small_config(capacity=16, seed=5), resume=True)
    with pytest.raises(UsageError, match="holds a run on other data"):
        run(tmp_path, small_config(max_epochs=1), random_features(seed=9), resume=True)


def test_a_folder_with_a_run_is_refused_unless_it_is_to_be_resumed_or_replaced(tmp_path):
    run(tmp_path, small_config(max_epochs=1))
    with pytest.raises(OutputError, match=r"holds a run already \(config\.toml\).*--resume.*--overwrite"):
        resolve_settings(tmp_path, resume=False, overwrite=False)
    assert resolve_settings(tmp_path, resume=True, overwrite=False) == small_config(max_epochs=1)
    assert resolve_settings(tmp_path, resume=False, overwrite=True).capacity == 512


def test_a_loss_that_is_no_number_stops_the_run_at_the_last_good_checkpoint(tmp_path):
    data = random_features()
    poisoned = Signalling(data, signal.SIGCONT, 0)  # counts reads, and does nothing else

    def batch(indices, views):
        poisoned._left -= 1
        values = data.batch(indices, views)
        return values * float("nan") if poisoned._left == -12 else values

    poisoned.batch = batch
    config = small_config(max_epochs=50, checkpoint_minutes=0.0)
    with pytest.raises(
        Diverged, match=r"the loss is nan at step \d+; .*last\.ckpt holds step \d+, the last good"
    ) as error:
        run(tmp_path, config, poisoned)
    step = load_state(tmp_path)[0]["step"]
    assert f"at step {step + 1};" in str(error.value)
    assert f"holds step {step}," in str(error.value)
    weights = read_weights(tmp_path / "last.ckpt")
    assert weights.provenance.extras["global_step"] == step
    assert error.value.exit_code == 1


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    trainer = Trainer(small_config(), random_features(), tmp_path)
    trainer.save()
    with torch.no_grad():
        trainer.model.projection.weight[0, 0] = float("inf")
    with pytest.raises(Diverged, match=r"projection\.weight is no longer finite"):
        trainer.save()
    assert torch.isfinite(load_state(tmp_path)[0]["model"]["projection.weight"]).all()


def test_a_disk_that_fills_up_ends_the_run_with_the_former_checkpoint_whole(tmp_path, monkeypatch):
    synced = os.fsync
    calls = []

    def full(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):  # a folder that is not synced is a note
            calls.append(handle)
        if len(calls) > 7:  # after config.toml, log.csv and the states of steps 0 and 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(handle)

    monkeypatch.setattr("satclip_engine.files.os.fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*the checkpoint before is whole"):
        run(tmp_path, small_config(max_epochs=50, checkpoint_minutes=0.0))
    monkeypatch.undo()
    assert load_state(tmp_path)[0]["step"] > 0


def test_a_batch_beyond_the_data_takes_all_of_them_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="a batch of 8192 is more than the 18 training samples"):
        done = train(small_config(batch_size=8192, max_epochs=2), random_features(), tmp_path)
    assert (done.outcome.batch_size, done.outcome.last.step) == (18, 2)


def test_a_single_sample_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="one training sample has no negatives"):
        run(tmp_path, small_config(val_random_split_fraction=0.0, batch_size=1), random_features(1))


def test_averaged_weights_are_validated_and_written(tmp_path):
    done = run(tmp_path, small_config(ema=0.9, max_epochs=5))
    state = load_state(tmp_path)[0]
    name = "location.nnet.layers.0.weight"
    assert not torch.equal(state["average"][name], state["model"][name])
    assert torch.equal(done.outcome.last.model[name], state["average"][name])


def test_no_unit_exceeds_the_largest_gain(tmp_path):
    limited = run(tmp_path / "a", small_config(max_gain=1.5, learning_rate=0.03, max_epochs=10))
    free = run(tmp_path / "b", small_config(learning_rate=0.03, max_epochs=10))
    found = []
    for done, folder in ((limited, "a"), (free, "b")):
        trainer = Trainer(small_config(), random_features(), tmp_path / folder)
        trainer.model.load_state_dict(done.outcome.last.model)
        found.append(float(gains(trainer.model.location).max()))
    assert found[0] <= 1.5 * (1 + 1e-6)
    assert found[1] > 2


def test_a_run_stops_when_validation_no_longer_improves(tmp_path):
    done = run(tmp_path, small_config(max_epochs=200, patience=3, learning_rate=0.03), random_features(40))
    assert done.outcome.stopped_early
    rows = log(tmp_path)
    losses = [float(row["val_loss"]) for row in rows]
    assert len(rows) < 200
    assert int(np.argmin(losses)) == len(rows) - 4
    assert done.outcome.best.epoch == len(rows) - 3


def test_validation_may_be_rarer_and_the_last_epoch_always_has_one(tmp_path):
    run(tmp_path, small_config(check_val_every_n_epoch=2, max_epochs=5))
    assert [bool(row["val_loss"]) for row in log(tmp_path)] == [False, True, False, True, True]


def test_bf16_and_tf32_train_as_well(tmp_path):
    for precision in ("bf16", "tf32"):
        done = run(tmp_path / precision, small_config(precision=precision, max_epochs=40, batch_size=18))
        assert done.outcome.history[-1]["train_loss"] < 1


def test_training_leaves_torchs_generator_where_it_was(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(tmp_path, small_config(max_epochs=1, dropout=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(tensorboard=True, max_epochs=2, batch_size=15)
    run(tmp_path, config, random_features(100))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = iter([event.value for event in events.Scalars("train_loss")])
    with pytest.warns(UserWarning, match="10 held-out samples"):
        trainer = Trainer(config, random_features(100), tmp_path / "again")
    for _ in range(12):
        assert next(losses) == pytest.approx(trainer.train_step(), rel=1e-6), "the loss of each step alone"
    values = [event.value for event in events.Scalars("val_loss")]
    np.testing.assert_allclose(values, [float(row["val_loss"]) for row in log(tmp_path)], rtol=1e-6)


@pytest.mark.parametrize(("fraction", "scored", "count"), [(0.1, "held-out", 20), (0.0, "training", 200)])
def test_the_log_says_what_was_scored_and_the_loss_that_chance_gives(tmp_path, fraction, scored, count):
    config = small_config(val_random_split_fraction=fraction, batch_size=180, max_epochs=2)
    done = run(tmp_path, config, random_features(200))
    for row in log(tmp_path):
        assert (row["val_of"], row["samples"]) == (scored, str(count))
        assert float(row["val_chance"]) == pytest.approx(np.log(count))
    assert done.outcome.best.scores.chance == pytest.approx(np.log(count))
