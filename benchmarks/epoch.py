"""Time of an epoch from cached features beside one that puts images through the trunk at every step.

    python benchmarks/epoch.py s2-100k --copies 16 --epochs 5

The second is the published trainer's way: read, augment, trunk, loss, update, every time an image is met.
Both run in the same trainer, with the same location encoder, batch and loss; what differs is where features
come from. The trunk has random weights, which changes no time. Prints Markdown; docs/training.md quotes it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from satclip_engine.bench.machine import label, machine, versions
from satclip_engine.cli._command import EXIT_CODES, Command
from satclip_engine.training.config import TrainConfig
from satclip_engine.training.features import build_cache
from satclip_engine.training.features.trunk_features import TrunkFeatures
from satclip_engine.training.images import augmentation_for, load_encoder
from satclip_engine.training.images.image_views import ImageViews
from satclip_engine.training.loop.trainer import Trainer
from satclip_engine.training.patches import open_source
from satclip_engine.training.samples import Features, MemoryFeatures


@click.command(cls=Command, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--encoders", default="rcf,resnet18", show_default=True, metavar="LIST")
@click.option("--copies", default=8, show_default=True, help="How often every image is a sample.")
@click.option("--epochs", default=3, show_default=True, help="Timed ones of each kind.")
@click.option("--batch-size", default=8192, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All numbers.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
def main(
    data: Path,
    encoders: str,
    copies: int,
    epochs: int,
    batch_size: int,
    json_file: Path | None,
    verbose: bool,
) -> None:
    """Time epochs with and without a feature cache."""
    warnings.simplefilter("ignore")
    runs = [measured(data, name, copies, epochs, batch_size) for name in encoders.split(",")]
    click.echo(f"{label(machine())}; {runs[0]['samples']} samples, L = 40, a batch of all of them\n")
    click.echo("| image encoder | cache made | epoch from the cache | epoch through the trunk | ratio |")
    click.echo("| --- | --- | --- | --- | --- |")
    for run in runs:
        cached, live = (run["samples"] / statistics.median(run[key]) for key in ("cached", "live"))
        cells = [run["encoder"], *(f"{value:,.0f}/s" for value in (run["cache_rate"], cached, live))]
        click.echo("| " + " | ".join([*cells, f"{cached / live:.0f} ×"]) + " |")
    if json_file:
        content = {"machine": machine(), "versions": versions(), "runs": runs}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


def measured(data: Path, name: str, copies: int, epochs: int, batch_size: int) -> dict[str, Any]:
    """Seconds of each epoch, cached and live, and images a second that go into a cache."""
    source = open_source(data)
    encoder = load_encoder(name, source)
    rows = np.tile(np.arange(len(source)), copies)
    images = ImageViews(source, rows, augmentation_for(encoder, source), seed=0)
    network = encoder.network() or Frozen(encoder)
    live = TrunkFeatures(images, network, dim=encoder.dim, chunk=64, trunk_fingerprint=encoder.fingerprint)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache = build_cache(source, encoder, Path(folder) / "features", views=copies)
        rate = len(source) * copies / (time.perf_counter() - start)
        stored = cache.batch(rows, np.repeat(np.arange(copies), len(source)))
        cached = MemoryFeatures(images.lonlat, stored)
        return {
            "encoder": name,
            "samples": len(rows),
            "cache_rate": rate,
            "cached": epoch_seconds(cached, Path(folder) / "a", epochs, batch_size),
            "live": epoch_seconds(live, Path(folder) / "b", epochs, batch_size),
        }


class Frozen(torch.nn.Module):
    """An encoder without a network of its own (rcf) as one."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = encoder.projection  # tells the device

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.encoder.trunk(views)


def epoch_seconds(data: Features, folder: Path, epochs: int, batch_size: int) -> list[float]:
    """Seconds of every epoch after a first one."""
    config = TrainConfig(batch_size=batch_size, val_random_split_fraction=0.0, max_epochs=epochs + 1)
    folder.mkdir()
    trainer = Trainer(config, data, folder)
    seconds = []
    for _ in range(epochs + 1):
        start = time.perf_counter()
        for _ in range(trainer.batches.steps_per_epoch):
            trainer.train_step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    main()
