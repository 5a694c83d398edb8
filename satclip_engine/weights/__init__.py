"""Weights of location encoders: checkpoints as they are, and the folded network that kernels evaluate."""

from satclip_engine.weights.layers import Layers
from satclip_engine.weights.location_weights import LocationWeights, Provenance, read_weights

__all__ = ["Layers", "LocationWeights", "Provenance", "read_weights"]
