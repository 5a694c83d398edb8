"""Preview picture of a raster: principal components in colours, on a map."""
