"""Views: what they do to an image, and that each is fixed by seed, image and view."""

from __future__ import annotations

import numpy as np
import pytest

from satclip_engine.errors import UsageError
from satclip_engine.training.images.augment import Augmentation, _blur, coordinate_jitter, uniforms


def images(count=3, size=20):
    return list(np.random.default_rng(0).random((count, 2, size, size), np.float32))


def test_a_view_depends_on_seed_image_and_view_only():
    some = images(5)
    views = Augmentation(16).views(some, range(5), range(4), seed=3)
    assert views.shape == (5, 4, 2, 16, 16)
    alone = Augmentation(16).views([some[3]], [3], range(4), seed=3)
    np.testing.assert_array_equal(views[3:4], alone)
    backwards = Augmentation(16).views(some[::-1], [4, 3, 2, 1, 0], range(2), seed=3)
    np.testing.assert_array_equal(backwards[::-1], views[:, :2])
    for other in ({"indices": range(1, 6), "seed": 3}, {"indices": range(5), "seed": 4}):
        changed = Augmentation(16).views(some, other["indices"], range(4), seed=other["seed"])
        assert not (changed == views).all(axis=(2, 3, 4)).any()


def test_each_image_may_have_view_numbers_of_its_own():
    some = images(3)
    every = Augmentation(16).views(some, range(3), range(9), seed=3)
    own = Augmentation(16).views(some, range(3), [[8], [0], [5]], seed=3)
    np.testing.assert_array_equal(own[:, 0], every[range(3), [8, 0, 5]])
    far = Augmentation(16).views(some, range(3), [[2**31 - 1], [2**31 - 2], [0]], seed=3)
    assert not (far[:2] == every[:2, :1]).all(axis=(2, 3, 4)).any()


def test_random_numbers_are_uniform_and_unrelated():
    draws = uniforms(5, np.arange(2000)[:, None], np.arange(4), 8)
    assert draws.shape == (2000, 4, 8)
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    table = np.corrcoef(draws.reshape(2000, -1).T)
    assert np.abs(table - np.eye(32)).max() < 0.12
    assert len(np.unique(draws)) == draws.size


def test_a_crop_is_a_part_of_the_image_at_every_offset():
    image = np.arange(2 * 5 * 5, dtype=np.float32).reshape(2, 5, 5)
    views = Augmentation(4, flips=False, blur=False).views([image], [0], range(200), seed=0)[0]
    corners = {tuple(view[:, 0, 0]) for view in views}
    assert corners == {tuple(image[:, row, column]) for row in range(2) for column in range(2)}
    for view in views:
        np.testing.assert_array_equal(np.diff(view, axis=2), 1)


def test_flips_happen_half_of_the_time_along_each_axis():
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    views = Augmentation(blur=False).views([image], [0], range(400), seed=0)[0]
    corners = np.unique(views[:, 0, 0, 0], return_counts=True)
    np.testing.assert_array_equal(corners[0], [0, 2, 6, 8])
    assert corners[1].min() > 70


def test_the_blur_is_torchvisions(torchvision):
    import torch
    from torchvision.transforms.v2.functional import gaussian_blur

    planes = np.random.default_rng(0).random((6, 17, 23), np.float32)
    for deviation in (0.1, 0.6, 2.0):
        blurred = planes.copy()
        _blur(blurred, np.full(6, deviation))
        expected = gaussian_blur(torch.from_numpy(planes), [3, 3], [deviation, deviation]).numpy()
        np.testing.assert_allclose(blurred, expected, rtol=0, atol=1e-6)


def test_each_view_has_its_own_blur():
    image = np.zeros((1, 9, 9), np.float32)
    image[0, 4, 4] = 1
    peaks = Augmentation(flips=False).views([image], [0], range(200), seed=0)[0, :, 0].max(axis=(1, 2))
    assert peaks.min() == pytest.approx(0.13, abs=0.01)  # deviation 2
    assert peaks.max() > 0.999  # deviation 0.1
    assert len(np.unique(peaks)) > 150


def test_resized_crops_cover_the_share_of_the_area_that_was_asked_for():
    pytest.importorskip("torch")
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (1, 64, 64))
    augmentation = Augmentation(16, scale=(0.25, 0.25), flips=False, blur=False)
    views = augmentation.views([ramp], [0], range(50), seed=0)[0]
    assert views.shape == (50, 1, 16, 16)
    spans = np.ptp(views[:, 0, 0], axis=1)
    assert 0.35 < spans.min() < spans.max() < 0.62  # half of the side, times √(4/3) at most


def test_crops_larger_than_the_images_are_refused():
    with pytest.raises(UsageError, match=r"20×20 pixels are smaller than the crop of 32.*scale"):
        Augmentation(32).views(images(), range(3), range(1), seed=0)
    assert Augmentation(32, scale=(0.5, 1)).output_size((20, 20)) == (32, 32)
    for bad in ({"crop": 0}, {"scale": (0.5, 1)}, {"crop": 8, "scale": (0.0, 1.0)}):
        with pytest.raises(UsageError):
            Augmentation(**bad)


def test_the_fingerprint_names_the_augmentation():
    some = [Augmentation(), Augmentation(8), Augmentation(8, blur=False), Augmentation(8, scale=(0.5, 1))]
    assert len({one.fingerprint for one in some}) == 4
    assert Augmentation(8).fingerprint == Augmentation(8).fingerprint


def test_coordinates_are_jittered_as_published():
    torch = pytest.importorskip("torch")
    lonlat = torch.tensor([[10.0, 20.0], [179.999, 89.999]], dtype=torch.float64).repeat(5000, 1)
    moved = coordinate_jitter(lonlat, torch.Generator().manual_seed(0)) - lonlat
    assert moved.dtype == torch.float64
    assert 0 <= moved.min() < 1e-5
    assert 0.00999 < moved[:, 0].max() < 0.01
    assert moved[::2].mean().item() == pytest.approx(0.005, abs=1e-4)
    assert (lonlat + moved)[:, 1].max() <= 90
    again = coordinate_jitter(lonlat, torch.Generator().manual_seed(0)) - lonlat
    assert torch.equal(moved, again)
