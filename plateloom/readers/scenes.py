"""What a file says of one scene, whichever package has read it; for the `bioio` reader."""

import math
from typing import NamedTuple

from plateloom.readers.planes import LIMIT


class Scene(NamedTuple):
    """One scene of a file. Lengths are in µm; what is not known is None.

    Attributes
    ----------
    name : str
    sizes : tuple of int
        Tiles, time points, channels and planes.
    channels : list of str
        No two alike.
    colors : list of (str or None)
        RRGGBB of each channel.
    wavelengths : list of (float or None)
        Emission of each channel [nm].
    plain : bool
        Whether it has no axes besides those, y and x: none of colors, say.
    pixel_size_um, z_step_um : float or None
    places : list of tuple of (float or None)
        Center of each tile, y and x.
    times : dict of tuple of int to float
        When each plane was taken, since 1970 [s], by its t, c and z; those that are known.
    """

    name: str
    sizes: tuple
    channels: list
    colors: list
    wavelengths: list
    plain: bool
    pixel_size_um: float | None
    z_step_um: float | None
    places: list
    times: dict


def pixel_size(y, x):
    """Side of a square pixel, from its two; None where one is not known, or it is not square.

    >>> pixel_size(0.5, 0.5)
    0.5
    >>> pixel_size(0.5, 0.6) is None
    True
    """
    square = None not in (y, x) and y > 0 and abs(y - x) <= 1e-3 * y
    return math.sqrt(y * x) if square else None


def finite_number(value, *, positive=False):
    """A finite number, or None; also for what is not above 0 where it must be."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and (value > 0 or not positive) else None


def check_size(height, width, itemsize):
    """Refuse a plane by what its file declares; ValueError where no plane is so large."""
    if height * width * itemsize > LIMIT:
        raise ValueError(f"declares {width} × {height} pixels")
