"""Points on Earth: coordinates, coordinate reference systems, and the pixels of rasters."""
