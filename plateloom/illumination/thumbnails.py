"""Thumbnails of fields: block means that know which blocks a field does not show, and an order that is their own."""

import numpy as np

_KNOWN_SHARE = 0.5  # of a block's pixels; the mean of fewer would stand for another place


def shrink_plane(plane, blocks):
    """Shrink one raw plane to block means.

    Parameters
    ----------
    plane : ndarray of integer or float, shape (Y, X)
        Raw [counts]; NaN where a pixel is not the field's own, as in the overlaps of a stitched well.
    blocks : int
        G, along either axis.

    Returns
    -------
    ndarray of float32, shape (G, G)
        Means of the blocks' own pixels [counts]; NaN where less than half of them are; a plane of fewer pixels repeats
        them.

    Examples
    --------
    >>> shrink_plane(np.array([[1, 3, 5, 7], [1, 3, 5, np.nan]]), 2)
    array([[2., 6.],
           [2., 5.]], dtype=float32)
    >>> shrink_plane(np.array([[1, 3], [np.nan, np.nan]]), 2)
    array([[ 1.,  3.],
           [nan, nan]], dtype=float32)
    """
    plane = np.asarray(plane)
    if plane.dtype.kind in "ui":
        return (_sum_blocks(plane, blocks) / _count_pixels(plane.shape, blocks)).astype(np.float32)
    known = np.isfinite(plane)
    total, count = (_sum_blocks(one, blocks) for one in (np.where(known, plane, 0), known))
    count[count < _KNOWN_SHARE * _count_pixels(plane.shape, blocks)] = np.nan
    return (total / count).astype(np.float32)


def sort_fields(thumbnails):
    """Put thumbnails into an order that follows from their content alone.

    Parameters
    ----------
    thumbnails : sequence of ndarray of float32, shape (G, G)
        [counts].

    Returns
    -------
    ndarray of float64, shape (K, G, G)
        Without those that show nothing at all; NaN where a block is not known. By their bytes, least significant first,
        so that every second one is as good as a random half.
    """
    stack = [np.where(np.isfinite(one), one, np.nan).astype(np.float32) for one in thumbnails]
    stack = [one for one in stack if not np.isnan(one).all()]
    stack.sort(key=lambda one: one.tobytes())
    return np.array(stack, dtype=np.float64)


def is_even(stack):
    """Whether no field has any contrast, as from a camera that counts nothing."""
    return np.max(np.nanmax(stack, (1, 2)) - np.nanmin(stack, (1, 2))) <= 1e-6 * np.nanmax(np.abs(stack))


def _starts(size, blocks):
    return np.arange(blocks) * size // blocks


def _sum_blocks(plane, blocks):
    """Sums over blocks, float64."""
    for axis in (0, 1):
        plane = np.add.reduceat(plane, _starts(plane.shape[axis], blocks), axis=axis, dtype=np.float64)
    return plane


def _count_pixels(shape, blocks):
    """Pixels of every block."""
    rows, columns = (np.maximum(np.diff(_starts(size, blocks), append=size), 1) for size in shape)
    return rows[:, None] * columns
