"""Image features: the cache on disk, and features of a trunk that is being trained."""

from satclip_engine.training.features.builder import build_cache
from satclip_engine.training.features.feature_cache import FeatureCache

__all__ = ["FeatureCache", "build_cache"]
