"""Resample an image to the pixel size that a network was trained at, and the network's maps back to the image.

Every position is counted from the first pixel of the whole image, in float64, and each value is one sum of products in
one order. What a tile sees is therefore, to the bit, what the whole image shows there.
"""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

from plateloom.compilation import kernel

TRUNCATE = 3.0


def blur_px(scale):
    """Sigma of the Gaussian that keeps finer detail than the grid from showing as coarse one [px of the image]."""
    return 0.5 * math.sqrt(1 / scale**2 - 1) if scale < 1 else 0.0


def support_px(scale):
    """How far from a point of the grid its value comes [px of the image]."""
    return int(TRUNCATE * blur_px(scale) + 0.5) + 1


def grid_size(size, scale, multiple):
    """Points of the whole image's grid along one axis.

    Parameters
    ----------
    size : int
        Size of the whole image [px].
    scale : float
        Points per pixel.
    multiple : int
        The size is a multiple of this; the last points repeat the last pixel.

    Returns
    -------
    int
    """
    return multiple * math.ceil(math.ceil(size * scale) / multiple)


def sample_view(view, origin, shape, scale, multiple):
    """Resample a view of an image on the grid of the whole image.

    Parameters
    ----------
    view : ndarray of float32, shape (H, W)
    origin : tuple of int (Y, X)
        Where the view begins in the image [px].
    shape : tuple of int (Y, X)
        Size of the whole image [px].
    scale : float
        Points per pixel.
    multiple : int
        The points returned begin and end at multiples of this.

    Returns
    -------
    points : ndarray of float32, shape (h, w)
        All points of the grid that the view knows as the whole image does; none in a view too narrow for any.
    first : tuple of int (Y, X)
        Number of the first point in the grid of the whole image.
    """
    sigma = blur_px(scale)
    if sigma:
        view = gaussian_filter(view, sigma, truncate=TRUNCATE)
    reach = support_px(scale)
    firsts, lows, shares = [], [], []
    for start, size, whole in zip(origin, view.shape, shape, strict=True):
        # A point lies between the pixels below and above its place.
        first, last = 0, grid_size(whole, scale, multiple)
        if start > 0:
            first = multiple * math.ceil(((start + reach + 0.5) * scale - 0.5) / multiple)
        if start + size < whole:
            last = multiple * math.floor(((start + size - 1 - reach + 0.5) * scale - 0.5) / multiple)
        place = (np.arange(first, max(last, first)) + 0.5) / scale - 0.5
        low, share = _neighbors(place, whole)
        firsts.append(first)
        lows.append(low - start)
        shares.append(share)
    points = _interpolate(np.ascontiguousarray(view[None]), lows[0], shares[0], lows[1], shares[1])
    return points[0], tuple(firsts)


def sample_points(points, first, origin, view_shape, shape, scale, multiple):
    """Resample maps on the grid back to the pixels of a view.

    Parameters
    ----------
    points : ndarray of float32, shape (C, h, w)
    first : tuple of int (Y, X)
        Number of the first point in the grid of the whole image.
    origin : tuple of int (Y, X)
        Where the view begins in the image [px].
    view_shape : tuple of int (H, W)
    shape : tuple of int (Y, X)
        Size of the whole image [px].
    scale : float
        Points per pixel.
    multiple : int
        As for `sample_view`.

    Returns
    -------
    ndarray of float32, shape (C, H, W)
        Between points the interpolation is linear. Pixels beyond the points repeat the nearest, which only at the edge
        of the image is what the whole image gets.
    """
    lows, shares = [], []
    for begin, start, size, whole, count in zip(first, origin, view_shape, shape, points.shape[1:], strict=True):
        place = (np.arange(start, start + size) + 0.5) * scale - 0.5
        low, share = _neighbors(place, grid_size(whole, scale, multiple))
        inside = np.clip(low - begin, 0, max(count - 2, 0))
        lows.append(inside)
        shares.append(np.where(low - begin < inside, 0, np.where(low - begin > inside, 1, share)).astype(np.float32))
    return _interpolate(np.ascontiguousarray(points), lows[0], shares[0], lows[1], shares[1])


def _neighbors(place, size):
    """Number of the sample below each place, and the share of the one above it."""
    place = np.clip(place, 0, size - 1)
    low = np.minimum(np.floor(place).astype(np.int64), max(size - 2, 0))
    return low, (place - low).astype(np.float32)


@kernel
def _interpolate(samples, row, row_share, column, column_share):
    """Linear interpolation between neighboring rows, then columns: float32, shape (C, len(row), len(column))."""
    found = np.empty((samples.shape[0], len(row), len(column)), np.float32)
    line = np.empty(samples.shape[2], np.float32)
    for c in range(samples.shape[0]):
        for i in range(len(row)):
            low, share = row[i], row_share[i]
            high = min(low + 1, samples.shape[1] - 1)
            for x in range(samples.shape[2]):
                line[x] = samples[c, low, x] + share * (samples[c, high, x] - samples[c, low, x])
            for j in range(len(column)):
                left = column[j]
                right = min(left + 1, samples.shape[2] - 1)
                found[c, i, j] = line[left] + column_share[j] * (line[right] - line[left])
    return found
