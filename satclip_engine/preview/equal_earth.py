"""The Equal Earth map projection on the unit sphere, closed form (Šavrič, Patterson and Jenny 2018,
doi:10.1080/13658816.2018.1504949).

It is pseudocylindrical: the latitude depends on y alone, and along a parallel the longitude is linear in x.
So an image needs one Newton solution a row instead of one a pixel. On the sphere, not the ellipsoid: the
two differ by a ninth of a degree at most, less than a pixel of a page-sized map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_A1, _A2, _A3, _A4 = 1.340264, -0.081106, 0.000893, 0.003796
_M = np.sqrt(3.0) / 2.0

Floats = NDArray[np.floating]


def parallel_scale(lat: Floats | float) -> Floats:
    """x per radian of longitude along the parallel `lat` (degrees); falls monotonically from the equator to
    the poles."""
    theta = _parametric(lat)
    return np.cos(theta) / (_M * _dy_dtheta(theta))


def northing(lat: Floats | float) -> Floats:
    """y of the parallel `lat` (degrees), −1.3173627… at the south pole to +1.3173627… at the north pole."""
    return _y(_parametric(lat))


def latitude(y: Floats) -> Floats:
    """Latitude in degrees of `y`; what lies beyond a pole gives the pole."""
    limit = np.pi / 3.0  # the parametric latitude of the pole
    y = np.clip(y, -_y(limit), _y(limit))
    theta = y / _A1
    for _ in range(8):  # y is nearly linear in θ: four steps reach the last bit, the rest cost nothing
        theta = theta - (_y(theta) - y) / _dy_dtheta(theta)
    return np.degrees(np.arcsin(np.clip(np.sin(theta) / _M, -1.0, 1.0)))


def _parametric(lat: Floats | float) -> Floats:
    return np.arcsin(_M * np.sin(np.radians(lat)))


def _y(theta: Floats | float) -> Floats:
    square = np.square(theta)
    return theta * (_A1 + square * (_A2 + square**2 * (_A3 + square * _A4)))


def _dy_dtheta(theta: Floats | float) -> Floats:
    square = np.square(theta)
    return _A1 + square * (3 * _A2 + square**2 * (7 * _A3 + square * 9 * _A4))
