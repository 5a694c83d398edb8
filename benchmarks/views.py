"""Cost of making only K augmented views of each image, once.

    python benchmarks/views.py bmng.jpg --bounds -180 -90 180 90 --views 1,2,4,16 --passes 20 --seeds 3

trains the same encoder on feature caches that differ in nothing but the number of views, for as many passes
over the data, and prints how well held-out locations and images find each other, as Markdown. `fresh` has a
new view in every pass, as augmentation at training time would make. docs/training-data.md has a table.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from satclip_engine.bench.machine import machine, versions
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.training.config import TrainConfig
from satclip_engine.training.features import FeatureCache, build_cache
from satclip_engine.training.images import load_encoder
from satclip_engine.training.loop.trainer import Trainer
from satclip_engine.training.raster_patches import RasterPatches

FRESH = "fresh"


class Views:
    """A cache of which the first `views` views are used; or, `fresh`, one after the other, pass by pass."""

    def __init__(self, cache: FeatureCache, views: int, *, fresh: bool) -> None:
        self.cache, self.views, self.fresh = cache, views, fresh
        self.lonlat, self.dim = cache.lonlat, cache.dim
        self.met = np.zeros(len(cache), np.int64)  # how often each image was trained on

    def batch(self, indices: Any, views: Any) -> torch.Tensor:
        """Features of a step, or first views where the trainer validates (it asks for view 0 of all)."""
        if not self.fresh or not np.any(views):
            return self.cache.batch(indices, views)
        self.met[indices] += 1
        return self.cache.batch(indices, self.met[indices] - 1)


@click.command(cls=Command, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("raster", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--bounds", nargs=4, type=float, help="W S E N, for a raster without georeference.")
@click.option("--patch", default=12, show_default=True, help="Side of the patches, in pixels.")
@click.option("--count", default=20_000, show_default=True, help="Patches.")
@click.option("--views", default="1,2,4,16", show_default=True, metavar="LIST", help="Numbers of views.")
@click.option("--passes", default=20, show_default=True, help="Over the data; `fresh` makes as many views.")
@click.option("--seeds", default=3, show_default=True, help="Repetitions.")
@click.option("--legendre-polys", default=20, show_default=True, help="L.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All numbers.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(
    raster: Path,
    bounds: tuple[float, float, float, float] | None,
    patch: int,
    count: int,
    views: str,
    passes: int,
    seeds: int,
    legendre_polys: int,
    json_file: Path | None,
    verbose: bool,
) -> None:
    """Measure what the number of cached views does to retrieval."""
    numbers = [int(word) for word in views.split(",")]
    source = RasterPatches(raster, patch=patch, count=count, bounds=bounds or None, water_kept=0.1)
    config = TrainConfig(
        legendre_polys=legendre_polys, max_epochs=passes, check_val_every_n_epoch=passes, batch_size=2048,
        learning_rate=1e-3, dropout=0.1, logit_scale=8.0, learn_logit_scale=False, coordinate_jitter=0.0,
    )  # fmt: skip
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = load_encoder("rcf", source, components=128)
        cache = build_cache(source, encoder, Path(folder) / "features", views=max(*numbers, passes))
        for seed in range(seeds):
            for number in [*numbers, FRESH]:
                scores = trained(dataclasses.replace(config, seed=seed), cache, number, Path(folder) / "run")
                runs.append({"views": number, "seed": seed} | scores)
                click.echo(f"views: {number}, seed {seed}: {scores}", err=True)
    click.echo(table(runs, [*numbers, FRESH]), nl=False)
    if json_file:
        options = {"count": len(cache), "patch": patch, "passes": passes, "legendre_polys": legendre_polys}
        content = {"machine": machine(), "versions": versions(), "options": options, "runs": runs}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


def trained(config: TrainConfig, cache: FeatureCache, views: int | str, folder: Path) -> dict[str, float]:
    """Scores on held-out samples, after the last step."""
    folder.mkdir(exist_ok=True)
    number = config.max_epochs if views == FRESH else int(views)
    outcome = Trainer(config, Views(cache, number, fresh=views == FRESH), folder).run()
    return {
        "loss": outcome.history[-1]["train_loss"],
        "held_out_loss": outcome.history[-1]["val_loss"],
        "place_r10": outcome.history[-1]["place_r10"],
        "image_r10": outcome.history[-1]["image_r10"],
    }


def table(runs: list[dict[str, Any]], numbers: list[int | str]) -> str:
    """Mean ± deviation over the seeds of each number of views."""
    lines = [
        "| views | loss in training | loss, held out | location→image R@10 | image→location R@10 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for number in numbers:
        own = [run for run in runs if run["views"] == number]
        cells = [_cell([run[key] for run in own], 1) for key in ("loss", "held_out_loss")]
        cells += [_cell([run[key] for run in own], 100) + " %" for key in ("place_r10", "image_r10")]
        lines.append("| " + " | ".join([str(number), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], factor: float) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{factor * statistics.fmean(values):.3f} ± {factor * deviation:.3f}"


if __name__ == "__main__":
    main()
