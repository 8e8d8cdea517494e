"""Median of a small disk: takes single bright or dark pixels away and leaves edges where they are."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage


class Params(BaseModel):
    """Parameters of the median."""

    model_config = ConfigDict(extra="forbid")

    radius_px: int = Field(1, ge=1, le=10, description="Radius of the disk [px]; faulty pixels have no size in µm.")


def halo_px(params, pixel_size_um):
    """How far around a pixel the disk reaches [px]."""
    return params.radius_px


def restore(plane, params, pixel_size_um):
    """Replace every pixel by the median of the disk around it.

    Parameters
    ----------
    plane : ndarray of float32, shape (Y, X)
    params : Params
    pixel_size_um : float
        Width of a pixel [µm/px].

    Returns
    -------
    ndarray of float32, shape (Y, X)
    """
    from_center = np.arange(-params.radius_px, params.radius_px + 1) ** 2
    disk = from_center[:, None] + from_center <= params.radius_px**2
    return ndimage.median_filter(plane, footprint=disk)
