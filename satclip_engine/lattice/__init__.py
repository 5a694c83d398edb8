"""Lattice reconstruction: a smooth embedding sampled coarsely, interpolated to any resolution, and measured.

plan.py      picks points, product grid or lattice for a job, and says why
pilot.py     how fast the error falls with the spacing, from short lines across the field
zones.py     the lattice: latitude bands whose longitudes thin out towards the poles
nodes.py     the lattice's values, evaluated where they are needed and kept
network.py   a network that answers from the lattice: places and product grids
parts.py      parts of a job given to threads
places.py    pixels of projected rasters, placed by an interpolated transform
certificate.py  the error, measured at fresh positions in every run
rates.py     what this machine does in a second
atlas.py     the lattice as a file that needs no network; it names the modules that make and read it
"""
