"""Smoothing by a Gaussian."""

from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

_REACH = 4  # sigmas: beyond lie 6e-5 of a Gaussian


class Params(BaseModel):
    """Parameters of the smoothing."""

    model_config = ConfigDict(extra="forbid")

    sigma_um: float = Field(0.5, gt=0, description="Standard deviation of the Gaussian [µm].")


def halo_px(params, pixel_size_um):
    """How far around a pixel the Gaussian looks [px]."""
    return round(_REACH * params.sigma_um / pixel_size_um)


def restore(plane, params, pixel_size_um):
    """Smooth a plane.

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
    return ndimage.gaussian_filter(plane, params.sigma_um / pixel_size_um, radius=halo_px(params, pixel_size_um))
