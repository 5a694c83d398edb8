"""Cut the whole set of published embeddings down to what the repository carries: trim.py WHOLE_SET OUTPUT.

Checkpoints are copied byte for byte. Of the embeddings it keeps every tagged place, the first 100 random
ones, and 16 of the 256 outputs, spread evenly and including both ends.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

KEPT = ("L10_analytic_c512_w1", "L40_closed-form_c256_w5", "L40_analytic_c256_w5")
RANDOM_PLACES = 100
COLUMNS = np.arange(0, 256, 17)


def trim(whole: Path, output: Path, name: str) -> None:
    """Write `name`.ckpt and `name`.npz into `output`."""
    shutil.copyfile(whole / f"{name}.ckpt", output / f"{name}.ckpt")
    published = np.load(whole / f"{name}.npz")
    tag = published["tag"]
    rows = np.flatnonzero((tag != 0) | (np.cumsum(tag == 0) <= RANDOM_PLACES))
    kept = {
        "lonlat": published["lonlat"][rows],
        "tag": tag[rows],
        "columns": COLUMNS,
        "published": published["embeddings"][rows][:, COLUMNS],
    }
    exact = whole / f"{name}_exactSH.npz"
    if exact.exists():
        kept["exact"] = np.load(exact)["embeddings"][rows][:, COLUMNS]
    np.savez_compressed(output / f"{name}.npz", **kept)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    for each in KEPT:
        trim(source, target, each)
    shutil.copyfile(source / "published_polynomials_L40.npz", target / "published_polynomials_L40.npz")
