"""Cutting a raster into levels, passes and metatiles."""

from __future__ import annotations

import numpy as np
import pytest

from satclip_engine.backends.protocols import BatchHints
from satclip_engine.errors import UsageError
from satclip_engine.raster.tiling import (
    DEFAULT_ENTRIES,
    MAX_ENTRIES,
    check_blocksize,
    choose_blocksize,
    make_tiling,
    preferred_blocksize,
    pyramid,
)

GB = 1 << 30
SHAPES = [(1, 1), (64, 65), (720, 1440), (1800, 3600), (1000, 70), (3600, 7200)]


def tiling_of(shape, bands=256, sample_bytes=1, blocksize=64, threads=2, memory=GB, mirrored=True, **more):
    return make_tiling(
        shape, bands, sample_bytes, blocksize, threads=threads, memory=memory, mirrored=mirrored, **more
    )


def test_levels_halve_and_round_up_until_the_smallest_fits_on_a_thumbnail():
    levels = pyramid((1801, 3600), 64)
    assert [(v.height, v.width) for v in levels] == [
        (1801, 3600),
        (901, 1800),
        (451, 900),
        (226, 450),
        (113, 225),
    ]
    assert [(v.tiles_down, v.tiles_across) for v in levels][-1] == (2, 4)
    assert len(pyramid((256, 256), 64)) == 1
    assert len(pyramid((257, 10), 64)) == 2
    assert len(pyramid((500, 500), 512)) == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocksize", [16, 48, 64, 256])
@pytest.mark.parametrize("memory", [GB, GB // 8])
def test_tasks_cover_every_tile_of_every_level_exactly_once(shape, blocksize, memory):
    tiling = tiling_of(shape, bands=16, blocksize=blocksize, memory=memory)
    assert tiling.memory <= memory
    seen = [np.zeros((v.tiles_down, v.tiles_across), int) for v in tiling.levels]
    for pyramid_pass in tiling.passes:
        for task in tiling.tasks(pyramid_pass):
            for column in task.columns:
                for k in range(pyramid_pass.count):
                    span = tiling.span >> k
                    rows = slice(task.row * span, (task.row + 1) * span)
                    seen[pyramid_pass.first + k][rows, column * span : (column + 1) * span] += 1
    assert all((level == 1).all() for level in seen)
    assert sum(pyramid_pass.count for pyramid_pass in tiling.passes) == len(tiling.levels)
    assert tiling.strip_rows % (2 * tiling.span) == 0


def test_metatiles_that_mirror_each_other_are_computed_together():
    tiling = tiling_of((1800, 3600), span=8)
    assert [task.columns for task in tiling.tasks(tiling.passes[0])][:5] == [
        (0, 6),
        (1, 5),
        (2, 4),
        (3,),
        (7,),
    ]
    assert all(len(task.columns) == 1 for task in tiling.tasks(tiling.passes[1]))
    alone = tiling_of((1800, 3600), span=8, mirrored=False)
    assert all(len(task.columns) == 1 for task in alone.tasks(alone.passes[0]))


def test_memory_does_not_grow_with_the_raster():
    assert tiling_of((36000, 72000)).memory <= 1.01 * tiling_of((7200, 14400)).memory


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_there_is_enough_work_to_keep_all_threads_busy_to_the_end(threads):
    tiling = tiling_of((1800, 3600), threads=threads, memory=8 * GB)
    tasks = list(tiling.tasks(tiling.passes[0]))
    assert tiling.threads == threads
    assert len(tasks) >= 12 * threads


def test_short_memory_costs_metatile_size_then_threads_then_an_error_with_the_number_needed():
    cuts = [tiling_of((18000, 36000), blocksize=512, memory=size * GB // 4) for size in (8, 4, 2, 1)]
    assert [(cut.threads, cut.span) for cut in cuts] == [(2, 4), (2, 2), (2, 1), (1, 1)]
    with pytest.raises(UsageError, match=r"memory 10 MB is too small.*need at least (\d+) MB") as error:
        tiling_of((18000, 36000), blocksize=512, memory=10**7)
    needed = int(str(error.value).split("at least ")[1].split(" ")[0])
    assert tiling_of((18000, 36000), blocksize=512, memory=(needed + 1) * 10**6).threads == 1


def test_strips_are_what_the_encoder_wants_at_once_within_a_tile_and_memory():
    rows = {
        places: tiling_of((1800, 3600), bands=3, hints=BatchHints(places)).strip_rows
        for places in (1 << 14, 1 << 15, 1 << 17)
    }
    assert rows == {1 << 14: 32, 1 << 15: 64, 1 << 17: 64}
    usual, large = (
        tiling_of((1800, 3600), memory=10**8, hints=BatchHints(places)) for places in (1 << 14, 1 << 17)
    )
    assert large.memory <= 10**8
    assert large.strip_rows < 64
    assert (large.threads, large.span) == (usual.threads, usual.span), "memory costs strips first"


def test_what_results_pass_through_counts_as_memory():
    plain, staged = (
        tiling_of((1800, 3600), hints=BatchHints(pinned_bytes=staged)) for staged in (0, 1 << 20)
    )
    assert staged.memory == plain.memory + plain.threads * (2 << 20)


def test_the_default_block_is_the_smallest_with_a_small_index():
    assert choose_blocksize((720, 1440), 256) == 64
    assert choose_blocksize((3600, 7200), 256) == 64
    assert choose_blocksize((7200, 14400), 256) == 128
    assert choose_blocksize((18000, 36000), 256) == 512
    for shape in ((720, 1440), (7200, 14400), (18000, 36000)):
        assert pyramid(shape, choose_blocksize(shape, 256))[0].tiles * 256 <= DEFAULT_ENTRIES


def test_a_tile_of_all_bands_is_a_short_read():
    sides = {
        (bands, size): preferred_blocksize(bands * size, interleaved=True)
        for bands, size in ((3, 1), (16, 1), (64, 1), (64, 2), (256, 1), (256, 4))
    }
    assert sides == {(3, 1): 128, (16, 1): 64, (64, 1): 32, (64, 2): 16, (256, 1): 16, (256, 4): 16}
    assert all(side == 16 or side**2 * bands * size <= 1 << 16 for (bands, size), side in sides.items())
    assert preferred_blocksize(256, interleaved=False) == choose_blocksize((720, 1440), 256) == 64
    assert choose_blocksize((720, 1440), 1, 16) == 16
    assert choose_blocksize((30_000, 60_000), 1, 16) == 32  # at most two million tiles


@pytest.mark.parametrize("blocksize", [0, -64, 8, 65, 100, 2048, 64.0])
def test_blocks_that_a_tiff_cannot_have_are_usage_errors(blocksize):
    with pytest.raises(UsageError, match="multiple of 16"):
        check_blocksize(blocksize, (720, 1440), 256)


def test_an_index_that_would_not_fit_is_a_usage_error_naming_its_size():
    assert pyramid((18000, 36000), 16)[0].tiles * 256 > MAX_ENTRIES
    with pytest.raises(UsageError, match="larger blocks"):
        check_blocksize(16, (18000, 36000), 256)


def test_any_number_of_threads_is_cut_to_what_memory_allows_at_once():
    """As many as counting down one by one from a number that it can do finds."""
    for bands, memory in ((1, 10**6), (64, 10**8), (256, GB)):
        tilings = [tiling_of((1, 1), bands, threads=count, memory=memory) for count in (10_000, 10**12)]
        assert tilings[0] == tilings[1]
        assert tilings[0].memory <= memory
        assert tiling_of((1, 1), bands, threads=tilings[0].threads + 1, memory=memory) == tilings[0]
