"""Every place on Earth as a vector: SatCLIP location embeddings from fused kernels."""

from satclip_engine._version import __version__

__all__ = ["__version__"]
