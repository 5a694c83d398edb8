"""The model, its optimizer and schedule, and how it is scored."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from factories.runs import random_features, small_config, torch

from satclip_engine.nn import LocationEncoder
from satclip_engine.training.loop.model import Model, gains, limit_gains, shape_first_layer
from satclip_engine.training.loop.optimizer import WeightAverage, parameter_groups
from satclip_engine.training.loop.schedule import learning_rate_factor, total_steps
from satclip_engine.training.loop.validation import retrieval_ranks, validate
from satclip_engine.training.samples import feature_statistics


def make(**changes):
    data = random_features()
    return Model(small_config(**changes), *feature_statistics(data, np.arange(20))), data


def test_the_scale_starts_where_the_published_one_does():
    model, _ = make()
    assert float(model.logit_scale.detach()) == pytest.approx(np.log(1 / 0.07))
    assert model.logit_scale.requires_grad
    assert not make(learn_logit_scale=False)[0].logit_scale.requires_grad


def test_the_exported_projection_does_to_raw_features_what_the_model_does():
    model, data = make()
    features = data.batch(np.arange(20), np.zeros(20, int))
    weight, bias = model.image_projection()
    expected = torch.nn.functional.normalize(features @ weight.T + bias, dim=-1)
    torch.testing.assert_close(model.embed_images(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("knee", [1.0, 4.0])
def test_a_taper_multiplies_the_columns_of_each_degree(knee):
    plain, tapered = (LocationEncoder(4, 8, 1, 3, seed=0) for _ in range(2))
    shape_first_layer(tapered, 1.5, knee, 24.0)
    ratio = (tapered.nnet.layers[0].weight / plain.nnet.layers[0].weight).detach()
    for column in range(16):
        degree = int(np.sqrt(column))
        np.testing.assert_allclose(ratio[:, column], 24 * (1 + degree / knee) ** -1.5, rtol=1e-5)


def test_gains_are_one_at_the_published_start_and_limited_unit_by_unit():
    location = LocationEncoder(20, 200, 1, 3, seed=0)
    assert float(gains(location).mean()) == pytest.approx(1, abs=0.02)
    with torch.no_grad():
        location.nnet.layers[0].weight[:100] *= 5
    before = gains(location)
    limit_gains(location, 3.0)
    torch.testing.assert_close(gains(location)[:100], torch.full((100,), 3.0))
    assert torch.equal(gains(location)[100:], before[100:])


def published_rule(named, decay):
    """Which parameters decay, as the published configure_optimizers has it."""
    found = {}
    for name, parameter in named:
        excluded = (
            parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
        )
        found[name] = 0.0 if excluded else decay
    return found


def test_weight_decay_falls_on_the_parameters_of_the_published_rule():
    model, _ = make()
    named = dict(model.named_parameters())
    expected = published_rule(named.items(), 0.01)
    of = {
        id(parameter): group
        for group in parameter_groups(named.items(), small_config())
        for parameter in group["params"]
    }
    assert {name: of[id(parameter)]["weight_decay"] for name, parameter in named.items()} == expected
    assert set(expected.values()) == {0.0, 0.01}


def test_the_first_layer_may_have_a_learning_rate_of_its_own():
    model, _ = make()
    config = small_config(first_layer_lr=1e-5)
    named = dict(model.named_parameters())
    of = {id(p): group for group in parameter_groups(named.items(), config) for p in group["params"]}
    slow = {name for name, p in named.items() if of[id(p)]["lr"] == 1e-5}
    assert slow == {"location.nnet.layers.0.weight", "location.nnet.layers.0.bias"}
    assert len(of) == len(named)


@pytest.mark.parametrize("of_layer", [None, 1e-5])
def test_the_first_layers_biases_may_have_one_too(of_layer):
    model, _ = make()
    config = small_config(first_layer_lr=of_layer, first_layer_bias_lr=1e-3)
    named = dict(model.named_parameters())
    of = {id(p): group for group in parameter_groups(named.items(), config) for p in group["params"]}
    rates = {name: of[id(p)]["lr"] for name, p in named.items()}
    assert rates["location.nnet.layers.0.bias"] == 1e-3
    assert rates["location.nnet.layers.0.weight"] == (of_layer or config.learning_rate)
    assert list(rates.values()).count(1e-3) == 1


def test_a_scale_that_is_fixed_is_in_no_group():
    model, _ = make(learn_logit_scale=False)
    groups = parameter_groups(model.named_parameters(), small_config())
    assert all(parameter is not model.logit_scale for group in groups for parameter in group["params"])


def test_the_learning_rate_rises_and_then_falls_along_a_cosine():
    config = small_config(schedule="cosine", warmup_steps=4)
    rates = [learning_rate_factor(step, 24, config) for step in range(24)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[14] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.01


def test_without_a_schedule_the_learning_rate_stays():
    assert {learning_rate_factor(step, 9, small_config()) for step in range(9)} == {1.0}


def test_a_run_ends_with_its_epochs_or_its_steps():
    assert total_steps(7, small_config(max_epochs=3)) == 21
    assert total_steps(7, small_config(max_epochs=3, max_steps=10)) == 10


@pytest.mark.parametrize("decay", [0.5, 0.95, 0.9999])
def test_an_average_is_torchs_with_a_decay_that_rises_from_two_elevenths(decay):
    layer = torch.nn.Linear(3, 2)

    def rising(average, new, step):
        return average.lerp(new, 1 - min(decay, (1 + step.item()) / (10 + step.item())))

    expected = torch.optim.swa_utils.AveragedModel(layer, avg_fn=rising)
    expected.update_parameters(layer)  # copies
    average = WeightAverage(layer, decay)
    for step in range(1, 300):
        with torch.no_grad():
            layer.weight += torch.sin(torch.arange(6.0) + step).view(2, 3)
        average.update(layer, step)
        expected.update_parameters(layer)
    for name, value in expected.module.state_dict().items():
        torch.testing.assert_close(average.state[name], value, rtol=1e-6, atol=1e-6)


def test_an_average_forgets_its_start_in_a_few_steps():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1)
    average = WeightAverage(layer, 0.9999)
    layer.weight.data.fill_(0)
    for step in range(1, 41):
        average.update(layer, step)
    share = math.factorial(41) * math.factorial(10) / math.factorial(50)  # the product of (1 + t) / (10 + t)
    assert float(average.state["weight"]) == pytest.approx(share, rel=1e-5)
    assert share < 1e-8


def test_ranks_count_the_candidates_that_are_at_least_as_similar():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(50, 4))) for _ in range(2))
    b[10] = b[11]  # a tie is counted against both
    similar = (a @ b.T).numpy()
    expected = [(np.delete(row, i) >= row[i]).sum() for i, row in enumerate(similar)]
    assert retrieval_ranks(a, b).tolist() == expected


def test_ranks_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = (torch.from_numpy(rng.normal(size=(50, 4))) for _ in range(2))
    whole = retrieval_ranks(a, b)
    monkeypatch.setattr("satclip_engine.training.loop.validation._BLOCK_ROWS", 7)
    assert torch.equal(retrieval_ranks(a, b), whole)


def test_embeddings_that_are_no_numbers_find_nothing():
    a = torch.full((5, 2), float("nan"))
    assert retrieval_ranks(a, a).tolist() == [4] * 5


def test_scores_are_those_of_the_eager_formula():
    model, data = make(dropout=0.5)
    scores = validate(model, data, np.arange(20), torch.device("cpu"))
    model.eval()
    with torch.no_grad():
        a = model.embed_locations(torch.from_numpy(data.lonlat))
        b = model.embed_images(data.batch(np.arange(20), np.zeros(20, int)))
        logits = model.scale() * a @ b.T
    entropy, own = torch.nn.functional.cross_entropy, torch.arange(20)
    assert scores.loss == pytest.approx(float(entropy(logits, own) + entropy(logits.T, own)) / 2, rel=1e-5)
    assert scores.place_r1 == float((logits.argmax(1) == own).double().mean())
    assert scores.samples == 20
