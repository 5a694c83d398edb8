"""Training patches cut from a raster at random locations: the public name of `sources.random_patches`."""

from satclip_engine.training.sources.random_patches import RasterPatches

__all__ = ["RasterPatches"]
