"""The picture beside a raster: principal components in colours, on a map."""
