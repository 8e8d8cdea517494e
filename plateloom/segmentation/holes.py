"""Pixels that no field covers, as where a field of a stitched well is missing: NaN in every channel of a view.

Nothing is known there, neither dark nor bright: they count in no histogram, in no mean of what lies around, and no
object lies in them. Their rims are like the edge of the image.
"""

import numpy as np
from scipy.ndimage import gaussian_filter


def find_covered(view):
    """Which pixels of a view some field covers.

    Parameters
    ----------
    view : ndarray of float32, shape (C, H, W)

    Returns
    -------
    ndarray of bool, shape (H, W), or None
        None where all are.
    """
    if not len(view) or not np.isnan(view[0]).any():
        return None
    covered = ~np.isnan(view).all(axis=0)
    return None if covered.all() else covered


def fill(view, covered, value):
    """A view with a value where no field covers it; the view itself if `covered` is None."""
    return view if covered is None else np.where(covered, view, np.float32(value))


def blur(plane, sigma, covered, *, truncate):
    """Gaussian of what is covered, as scipy's where all is.

    Parameters
    ----------
    plane : ndarray of float32, shape (H, W)
        Any values where nothing is covered.
    sigma : float
        [px]
    covered : ndarray of bool, shape (H, W), or None
    truncate : float
        Radius of the kernel in sigmas.

    Returns
    -------
    ndarray of float32, shape (H, W)
        NaN where the kernel sees nothing covered. Where it sees nothing else, shares are 1 to the bit, and the value is the same
        whether or not the view has a hole elsewhere.
    """
    if covered is None:
        return gaussian_filter(plane, sigma, truncate=truncate)
    seen, share = (
        gaussian_filter(one, sigma, truncate=truncate)
        for one in (fill(plane, covered, 0), fill(np.float32(1), covered, 0))
    )
    return np.divide(seen, share, out=np.full_like(share, np.nan), where=share > 0)
