"""Embeddings as xarray and dask arrays, computed where they are indexed."""
