"""Lattice reconstruction: a smooth embedding sampled coarsely, interpolated to any resolution, and measured.

choose.py       chooses a plan for a raster or points, and keeps the latest ones
plan.py         points, product grid or lattice, by estimated cost; with the reason
convergence.py  convergence probe: the error against the spacing, from short lines across the field
zones.py        the lattice: latitude bands whose longitudes thin out towards the poles
nodes.py        the lattice's values, evaluated where they are needed, in an LRU cache
prepared.py     a prepared network that interpolates from the lattice: pixels, points and product grids
threads.py      runs work items in threads
transform.py    pixel locations of projected rasters by an approximating transformer
sampling.py     sampling regions: positions that a lattice must serve
certificate.py  the error, measured at fresh positions in every run
tolerance.py    the largest error allowed, by σ or by quantisation step
cost.py         cost model: analytic rates decide, measured rates predict run time
"""
