"""An image encoder that is trained too: passes in chunks, whole runs, and what is refused."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories.runs import random_features, small_config, torch
from factories.training import S2, MadeSource, made_images

from satclip_engine.contrast import contrastive_loss
from satclip_engine.errors import DataError, UsageError
from satclip_engine.training.features.trunk_features import GradientCache
from satclip_engine.training.images.image_views import usable_rows
from satclip_engine.training.inputs import training_inputs
from satclip_engine.training.loop.batches import BatchSchedule
from satclip_engine.training.loop.distributed import ProcessContext
from satclip_engine.training.loop.model import Model
from satclip_engine.training.loop.optimizer import parameter_groups
from satclip_engine.training.loop.state import load_state
from satclip_engine.training.loop.trainer import Trainer, last_good_state
from satclip_engine.training.loop.validation import validate
from satclip_engine.training.samples import feature_statistics
from satclip_engine.training.session import train
from satclip_engine.training.sources.source import SkippedImage

ALONE = ProcessContext(torch.device("cpu"))
# Everything random is in use, so that nothing of it can be forgotten in a state.
RESTLESS = {"dropout": 0.3, "feature_noise": 0.2, "ema": 0.9, "schedule": "cosine", "warmup_steps": 2}


def unfrozen_config(**changes):
    return small_config(**({"image_encoder": "resnet18", "unfreeze": True} | changes))


def trunk_of(folder, part="model"):
    state = load_state(folder)[0][part]
    return {name: value for name, value in state.items() if name.startswith("trunk.")}


def assert_same_weights(first, second, **tolerance):
    a, b = (load_state(folder)[0] for folder in (first, second))
    assert a["step"] == b["step"]
    for part in ("model", "average"):
        for name, value in (a[part] or {}).items():
            torch.testing.assert_close(
                b[part][name], value, **({"rtol": 0, "atol": 0} | tolerance), msg=f"{part} {name}"
            )


def gradients(chunk, *, dtype=torch.float64, arithmetic=contextlib.nullcontext):
    """The trunk's gradients of the loss over a batch of 16, its images passing in chunks."""
    data = made_images(chunk=chunk)
    trunk = data.trunk.to(dtype)
    if dtype == torch.float64:
        trunk.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    batches = BatchSchedule(np.arange(20), 16, data.views, 0)
    passes = GradientCache(data, trunk, batches.batch, 2)
    locations = torch.nn.functional.normalize(torch.randn(16, 12, generator=torch.Generator().manual_seed(1)))
    with arithmetic():
        features = passes.forward(batches.batch(0))
    images = torch.nn.functional.normalize((features - features.mean().detach()).to(dtype))
    contrastive_loss(locations.to(dtype), images, 10.0).backward()
    passes.backward(arithmetic)
    passes.close()
    return {name: parameter.grad for name, parameter in trunk.named_parameters()}


@pytest.mark.parametrize("chunk", [1, 5, 8, 15])
def test_two_passes_in_chunks_give_the_gradient_of_the_whole_batch(chunk):
    whole = gradients(16)  # in one pass, by autograd alone
    for name, gradient in gradients(chunk).items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, whole[name], rtol=1e-10, atol=1e-14, msg=name)


def test_both_passes_are_in_bf16_where_that_is_asked_for():
    def narrow():
        return torch.autocast("cpu", torch.bfloat16)

    whole, chunks = (gradients(chunk, dtype=torch.float32, arithmetic=narrow) for chunk in (16, 5))
    exact = gradients(16)
    for name, gradient in chunks.items():
        size = float(exact[name].abs().max())
        assert float((gradient - whole[name]).abs().max()) < 0.02 * size, name
        assert 1e-6 * size < float((gradient - exact[name]).abs().max()) < 0.1 * size, name


def test_a_run_does_not_depend_on_the_chunks(tmp_path):
    for chunk in (3, 16):
        train(unfrozen_config(**RESTLESS), made_images(chunk=chunk), tmp_path / str(chunk))
    # AdamW turns a gradient near 0 into a step of any sign.
    assert_same_weights(tmp_path / "3", tmp_path / "16", rtol=1e-4, atol=3e-5)


def test_training_moves_the_trunk_but_not_its_running_statistics(tmp_path):
    data = made_images()
    before = {f"trunk.{name}": value.clone() for name, value in data.trunk.state_dict().items()}
    train(unfrozen_config(), data, tmp_path / "a")
    for name, value in trunk_of(tmp_path / "a").items():
        stands_still = "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) == stands_still, name
    train(unfrozen_config(image_lr=0.0), data, tmp_path / "b")
    for name, value in trunk_of(tmp_path / "b").items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(data.trunk.state_dict()["0.weight"], before["trunk.0.weight"])


class Tinted(MadeSource):
    """Images that differ by their colour."""

    def read(self, indices):
        tints = [np.random.default_rng([1, row]).random((3, 1, 1), np.float32) for row in indices]
        return [0.2 * image + tint for image, tint in zip(super().read(indices), tints, strict=True)]


def test_a_trunk_that_is_trained_learns_what_a_frozen_one_does_not(tmp_path):
    settings = {"val_random_split_fraction": 0.0, "batch_size": 20, "max_epochs": 40}
    losses = []
    for rate in (None, 0.0):
        config = unfrozen_config(image_lr=rate, check_val_every_n_epoch=40, **settings)
        done = train(config, made_images(source=Tinted(20)), tmp_path / str(rate))
        losses.append(done.outcome.history[-1]["val_loss"])
    assert losses[0] < 0.6 * losses[1]


def test_the_image_encoder_may_have_a_learning_rate_of_its_own():
    data = made_images()
    model = Model(unfrozen_config(), *feature_statistics(data, np.arange(20)), data.trunk)
    config = unfrozen_config(image_lr=1e-5, first_layer_lr=1e-4)
    groups = parameter_groups(model.named_parameters(), config)
    assert [group["lr"] for group in groups] == [3e-3, 3e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    own = {id(parameter) for group in groups[4:] for parameter in group["params"]}
    assert own == {id(parameter) for parameter in data.trunk.parameters()}
    assert all(parameter.ndim == 1 for parameter in groups[4]["params"])
    assert groups[4]["weight_decay"] == 0


def test_the_trunk_stays_in_evaluation_mode():
    data = made_images()
    model = Model(unfrozen_config(), *feature_statistics(data, np.arange(20)), data.trunk)
    assert model.train().location.training
    assert not any(module.training for module in model.trunk.modules())


def test_every_epoch_shows_an_image_in_another_view():
    data = made_images()
    batches = BatchSchedule(np.arange(20), 10, data.views, 0)
    steps = [batches.batch(step) for step in range(60)]
    seen = {pair for step in steps for pair in zip(step.samples.tolist(), step.views.tolist(), strict=True)}
    assert len(seen) == 600
    first, again, other = data.images.prefetch([(np.array([3]), np.array([view])) for view in (7, 7, 8)])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_averaged_trunk_is_validated_and_written(tmp_path):
    config = unfrozen_config(ema=0.8)
    data = made_images()
    done = train(config, data, tmp_path)
    averaged, own = trunk_of(tmp_path, "average"), trunk_of(tmp_path)
    assert not torch.equal(averaged["trunk.0.weight"], own["trunk.0.weight"])
    assert last_good_state(tmp_path).last.model.keys() == done.outcome.last.model.keys()
    trainer = Trainer(config, data, tmp_path)
    trainer.model.load_state_dict(done.outcome.last.model)
    for name, value in averaged.items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    scores = validate(
        trainer.model, data.with_trunk(trainer.model.trunk), trainer.held_out, torch.device("cpu")
    )
    assert scores.loss == pytest.approx(done.outcome.history[-1]["val_loss"], rel=1e-5)


class Failing(MadeSource):
    """Images, one of which cannot be read from its nth reading on."""

    def __init__(self, reads):
        super().__init__(50)
        self._left = reads

    def read(self, indices):
        self._left -= 7 in indices
        broken = (7,) if self._left < 0 else ()
        return [
            SkippedImage("made-7", "broken") if i in broken else super(Failing, self).read([i])[0]
            for i in indices
        ]


def test_a_run_broken_off_by_an_unreadable_image_goes_on_to_the_weights_of_a_whole_one(tmp_path):
    config = unfrozen_config(max_epochs=5, checkpoint_minutes=0.0, **RESTLESS)
    train(config, made_images(50), tmp_path / "whole")
    message = r"made-7 \(broken\): it could be used when training began; .* --resume"
    with pytest.raises(DataError, match=message):
        train(config, made_images(source=Failing(6)), tmp_path / "cut")
    assert 0 < load_state(tmp_path / "cut")[0]["step"] < 10
    train(config, made_images(50), tmp_path / "cut", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "other",
    [
        made_images(seed=1),
        made_images(trunk_fingerprint="b"),
        made_images(source=MadeSource(20, broken=(19,))),
    ],
    ids=["other images", "another start", "one image less"],
)
def test_a_run_on_other_images_or_from_another_start_is_not_resumed(tmp_path, other):
    train(unfrozen_config(max_epochs=1), made_images(), tmp_path)
    train(unfrozen_config(max_epochs=2), made_images(chunk=3), tmp_path, resume=True)
    with pytest.raises(UsageError, match="holds a run on other data"):
        train(unfrozen_config(max_epochs=3), other, tmp_path, resume=True)
    with pytest.raises(UsageError, match=r"other settings: unfreeze \(True there, False now\)"):
        train(small_config(image_encoder="resnet18"), random_features(), tmp_path, resume=True)


SCRIPT = """
from pathlib import Path
from factories.runs import small_config
from factories.training import made_images
from satclip_engine.training.loop.distributed import join_processes
from satclip_engine.training.session import train
with join_processes("cpu") as processes:
    train(small_config(**{settings!r}), made_images(50, chunk=4), Path({folder!r}), processes=processes)
"""


def test_two_processes_end_with_the_trunk_of_one(tmp_path):
    settings = {"image_encoder": "resnet18", "unfreeze": True, "batch_size": 15, "max_epochs": 3, "ema": 0.8}
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(settings=settings, folder=str(tmp_path / "two")))
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, str(script)], env=here, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    train(small_config(**settings), made_images(50, chunk=16), tmp_path / "one")
    assert_same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-4, atol=3e-5)


def test_images_that_cannot_be_used_are_found_before_training():
    rows, skipped = usable_rows(MadeSource(50, broken=(3, 20)), workers=2)
    assert [str(item) for item in skipped] == ["made-3 (broken)", "made-20 (broken)"]
    assert rows.tolist() == [row for row in range(50) if row not in (3, 20)]
    with pytest.raises(DataError, match="2 of 50 images cannot be used, more than the 1 allowed: made-3"):
        usable_rows(MadeSource(50, broken=(3, 20), max_skipped=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"unfreeze": True},
            "unfreeze: rcf has nothing to fine-tune.*image_encoder .resnet18, resnet50, vit16.*leave it out",
        ),
        (
            {"image_encoder": "resnet18", "image_lr": 1e-5},
            "image_lr: the image encoder is frozen: give unfreeze too",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        small_config(**settings)


def test_a_folder_of_features_has_no_images_to_train_on(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"unfreeze: .* holds features, not images.*give those as DATA"):
        training_inputs(tmp_path, False, unfrozen_config(), tmp_path / "features", ALONE)


@pytest.mark.filterwarnings("ignore:resnet18 has no weights")
def test_real_patches_become_samples_but_for_the_damaged_one(timm, s2, tmp_path):
    damaged = sorted((s2 / "images").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:20_000])
    config = unfrozen_config(val_random_split_fraction=0.0)
    with pytest.warns(UserWarning, match=rf"1 images are left out: .*{damaged.name}") as said:
        inputs = training_inputs(s2, False, config, tmp_path / "features", ALONE)
    assert any("resnet18 has no weights" in str(one.message) for one in said)
    assert inputs.description == "3 samples, resnet18 unfrozen (11.2 M parameters)"
    assert inputs.features.batch(np.arange(3), np.zeros(3, int)).shape == (3, 512)
    assert not (tmp_path / "features").exists()
    whole = training_inputs(S2, False, config, tmp_path / "features", ALONE)
    assert whole.features.fingerprint != inputs.features.fingerprint
