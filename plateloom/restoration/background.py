"""Subtraction of a smooth background: a white top-hat whose floor is smoothed.

The rule, r being the radius: the plane is smoothed a little, so that noise does not lower what follows; then opened, which
is the minimum over squares of 2 r + 1 pixels and then the maximum over the same, so that what is narrower than 2 r
vanishes; the floor that is left is smoothed by a Gaussian of sigma r / 2, so that no squares show, and subtracted. What
would be below 0 is 0. Much as a rolling ball does, with squares, whose minimum takes the same time whatever their size.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage


class Params(BaseModel):
    """Parameters of the background."""

    model_config = ConfigDict(extra="forbid")

    radius_um: float = Field(
        25.0,
        gt=0,
        description="Half the width of the squares that the background is looked for in; half the width of the widest "
        "object, or clump of objects, at least [µm].",
    )
    smoothing_um: float = Field(
        1.0,
        ge=0,
        description="Sigma of the Gaussian before the minimum, which noise would lower; only where the background is looked "
        "for, the image itself stays sharp [µm].",
    )


def _reaches(params, pixel_size_um):
    """How far the smoothing, the minimum and the smoothing of the floor look [px]."""
    radius = max(round(params.radius_um / pixel_size_um), 1)
    return round(3 * params.smoothing_um / pixel_size_um), radius, radius


def halo_px(params, pixel_size_um):
    """How far around a pixel its background is looked for [px]."""
    smoothing, radius, floor = _reaches(params, pixel_size_um)
    return smoothing + 2 * radius + floor


def restore(plane, params, pixel_size_um):
    """Subtract the background of a plane.

    Parameters
    ----------
    plane : ndarray of float32, shape (Y, X)
    params : Params
    pixel_size_um : float
        Width of a pixel [µm/px].

    Returns
    -------
    ndarray of float32, shape (Y, X)
        At least 0.
    """
    smoothing, radius, floor = _reaches(params, pixel_size_um)
    background = plane
    if smoothing:
        background = ndimage.gaussian_filter(plane, params.smoothing_um / pixel_size_um, radius=smoothing)
    for narrow in (ndimage.minimum_filter, ndimage.maximum_filter):
        background = narrow(background, 2 * radius + 1)
    background = ndimage.gaussian_filter(background, radius / 2, radius=floor)
    return np.maximum(plane - background, np.float32(0))
