"""Sources of training images with their locations: folders, tables of files, rasters cut into patches."""
