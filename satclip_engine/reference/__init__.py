"""The definition of what backends compute, in plain PyTorch: embeddings, their gradients and the loss."""

from satclip_engine.reference.forward import blocks, encode, encode_grid, features, harmonics, slopes

__all__ = ["blocks", "encode", "encode_grid", "features", "harmonics", "slopes"]
