"""Thresholds from a histogram of intensities, so that the sum over tiles gives the threshold of the image.

The bins are as wide as a fixed fraction (1/2048) of the intensity: a dim image is resolved as finely as a bright one,
whatever the camera's bit depth was.
"""

import numpy as np

BINS_PER_OCTAVE = 2048
OCTAVES = 22
BINS = BINS_PER_OCTAVE * OCTAVES
BRIGHTEST = 2.0
"""Intensities from here on share the last bin; illumination correction may lift some above 1."""

_SHIFT = 12  # of a float32's 23 bits of mantissa, leaves the 11 that number the bins of an octave
_FIRST = (np.float32(BRIGHTEST).view(np.int32) >> _SHIFT) - BINS


def bin_values():
    """Return the intensity in the middle of each bin.

    Returns
    -------
    ndarray of float64, shape (45056,)
        Intensities; 0 for the first bin, which holds everything too dim for the others.
    """
    edges = np.arange(_FIRST, _FIRST + BINS + 1, dtype=np.int32) << _SHIFT
    edges = edges.view(np.float32).astype(np.float64)
    values = (edges[:-1] + edges[1:]) / 2
    values[0] = 0.0
    return values


def count_intensities(intensities):
    """Count how many pixels fall into each bin.

    Parameters
    ----------
    intensities : ndarray of float32
        Intensities; negative ones fall into the first bin, those above `BRIGHTEST` into the last.

    Returns
    -------
    ndarray of int64, shape (45056,)
        Number of pixels per bin; histograms of tiles add up to that of the image.
    """
    bits = np.ascontiguousarray(intensities, dtype=np.float32).view(np.int32).ravel() >> _SHIFT
    return np.bincount(np.clip(bits - _FIRST, 0, BINS - 1), minlength=BINS).astype(np.int64)


def quantile(histogram, values, fraction):
    """Return the value below which a fraction of the pixels lie.

    Parameters
    ----------
    histogram : ndarray of int64, shape (B,)
    values : ndarray of float64, shape (B,)
        Intensity of each bin, ascending.
    fraction : float in [0, 1]

    Returns
    -------
    float
        An intensity; 0 if there are no pixels.
    """
    cumulative = np.cumsum(histogram)
    if cumulative[-1] == 0:
        return 0.0
    return float(values[np.searchsorted(cumulative, max(fraction * cumulative[-1], 1), side="left")])


def find_background(histogram, values, *, fraction=0.25):
    """Find level and spread of the background: the narrowest range of intensities that holds a fraction of the pixels.

    The spread is taken from below the background's level, where there are no objects. No assumption is made of how
    many pixels are background, but that they are at least the fraction and vary less than the objects do.

    Parameters
    ----------
    histogram : ndarray of int64, shape (B,)
    values : ndarray of float64, shape (B,)
        Intensity of each bin, ascending.
    fraction : float in (0, 1)
        Fraction of the pixels in the range.

    Returns
    -------
    level : float
        Intensity of the background.
    spread : float
        Standard deviation of the background's pixels; 0 for a constant image.

    Examples
    --------
    >>> find_background(np.array([0, 5, 10, 5, 0, 0, 1, 1, 1]), np.arange(9.0))
    (2.0, 1.0)
    """
    filled = np.flatnonzero(histogram)
    if len(filled) == 0:
        return 0.0, 0.0
    counts, values = histogram[filled], values[filled]
    up_to = np.concatenate([[0], np.cumsum(counts)])
    wanted = max(1, int(np.ceil(fraction * up_to[-1])))
    first = np.arange(len(counts))
    after = np.searchsorted(up_to, up_to[:-1] + wanted, side="left")
    first, after = first[after <= len(counts)], after[after <= len(counts)]
    width = values[after - 1] - values[first]
    narrowest = np.flatnonzero(width == width.min())
    best = narrowest[np.argmax(up_to[after[narrowest]] - up_to[first[narrowest]])]
    middle = (up_to[first[best]] + up_to[after[best]]) / 2
    at = int(np.searchsorted(up_to[1:], middle, side="left"))
    # 31.7 % of the lower half of a normal distribution lie more than one standard deviation below its middle.
    low = int(np.searchsorted(up_to[1:], 0.3173 * (up_to[at] + counts[at] / 2), side="left"))
    return float(values[at]), float(values[at] - values[low])


def leave_out_glare(histogram, excess, lowest, *, ratio=8.0, most_edge=0.1):
    """Leave out what is far brighter than all the rest and has too little edge to be made of nuclei.

    Where a bright region ends, intensity falls through all that lies between it and its surroundings: an image that was
    smoothed in proportion to its nuclei has at least so many pixels there, for any object as small as the largest nucleus.
    What has fewer is wider: dirt, a fiber, a saturated patch.

    Parameters
    ----------
    histogram : ndarray of int64, shape (B,)
        Of the smoothed image.
    excess : ndarray of float64, shape (B,)
        Intensity of each bin above background, ascending.
    lowest : float
        Excess that the range begins with at least; positive.
    ratio : float
        The range of intensities that must be nearly empty, as a factor.
    most_edge : float
        Pixels in this range, as a fraction of those above it.

    Returns
    -------
    ndarray of int64, shape (B,)
        The histogram, 0 from the lowest nearly empty range on; as it was if there is none.

    Examples
    --------
    >>> leave_out_glare(np.array([90, 5, 5, 0, 0, 0, 2]), np.array([0.0, 1, 2, 4, 8, 16, 64]), 1)
    array([90,  5,  5,  0,  0,  0,  0])
    """
    above = np.append(np.cumsum(histogram[::-1])[::-1], 0)
    beyond = above[np.searchsorted(excess, ratio * excess, side="left")]
    empty = (excess >= lowest) & (beyond > 0) & (above[:-1] - beyond <= most_edge * beyond)
    return np.where(np.arange(len(histogram)) < np.argmax(empty), histogram, 0) if empty.any() else histogram


def otsu(histogram, values):
    """Find the intensity that splits the pixels into the two classes of least variance (Otsu).

    Parameters
    ----------
    histogram : ndarray of int64, shape (B,)
    values : ndarray of float64, shape (B,)
        Intensity of each bin, ascending.

    Returns
    -------
    float
        Pixels above this intensity are foreground.

    Notes
    -----
    Otsu, doi:10.1109/TSMC.1979.4310076.

    Examples
    --------
    >>> otsu(np.array([0, 9, 9, 0, 0, 0, 0, 4, 4]), np.arange(9.0))
    4.5
    """
    return _best_split(histogram, values, _between_class_variance)


def minimum_cross_entropy(histogram, values):
    """Find the intensity that splits the pixels into two classes with the least cross entropy (Li).

    It sees dim objects beside bright ones better than Otsu's does.

    Parameters
    ----------
    histogram : ndarray of int64, shape (B,)
    values : ndarray of float64, shape (B,)
        Intensity of each bin, ascending; negative ones count as zero.

    Returns
    -------
    float
        Pixels above this intensity are foreground.

    Notes
    -----
    All splits are tried: the usual iteration stops at whichever minimum lies next to its start. Li and Tam,
    doi:10.1016/S0167-8655(98)00057-9.

    Examples
    --------
    >>> minimum_cross_entropy(np.array([0, 9, 9, 0, 0, 0, 0, 4, 4]), np.arange(9.0))
    4.5
    """
    return _best_split(histogram, values, _negative_cross_entropy)


def _best_split(histogram, values, criterion):
    """The intensity between two filled bins that has the highest criterion."""
    filled = np.flatnonzero(histogram)
    if len(filled) < 2:
        return float(values[filled[0]]) if len(filled) else 0.0
    counts, values = histogram[filled].astype(np.float64), values[filled]
    at = int(np.argmax(criterion(counts, values)))
    return float((values[at] + values[at + 1]) / 2)


def _between_class_variance(counts, values):
    below, sums = np.cumsum(counts), np.cumsum(counts * values)
    above = below[-1] - below[:-1]
    gap = (sums[-1] - sums[:-1]) / above - sums[:-1] / below[:-1]
    return below[:-1] * above * gap**2


def _negative_cross_entropy(counts, values):
    # A floor keeps the logarithm finite where all pixels below the split are zero.
    values = np.maximum(values, 0.0) + 1e-3 * max(values[-1], 1e-12)
    below, sums = np.cumsum(counts), np.cumsum(counts * values)
    above, sums_above = below[-1] - below[:-1], sums[-1] - sums[:-1]
    return sums[:-1] * np.log(sums[:-1] / below[:-1]) + sums_above * np.log(sums_above / above)
