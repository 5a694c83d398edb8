// Raster kernels.
