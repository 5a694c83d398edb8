"""Training images with their locations, by their form on disk: the public readers of `sources`."""

from satclip_engine.training.sources.readers import open_source, read_folder, read_index, read_table

__all__ = ["open_source", "read_folder", "read_index", "read_table"]
