"""Thresholds from a histogram of intensities, so that the sum over tiles gives the threshold of the image."""

import numpy as np

LEVELS = 65536


def count_levels(levels):
    """Count how many pixels have each level.

    Parameters
    ----------
    levels : ndarray of int32
        Intensities [levels], 0 … `LEVELS` - 1.

    Returns
    -------
    ndarray of int64, shape (65536,)
        Number of pixels at each level; histograms of tiles add up to that of the image.
    """
    return np.bincount(levels.ravel(), minlength=LEVELS).astype(np.int64)


def find_background(histogram, *, fraction=0.25):
    """Find level and spread of the background: the narrowest stretch of levels that holds a fraction of the pixels.

    The spread is taken from below the background's level, where there are no objects. No assumption is made of how
    many pixels are background, but that they are at least the fraction and vary less than the objects do.

    Parameters
    ----------
    histogram : ndarray of int64, shape (L,)
    fraction : float in (0, 1)
        Fraction of the pixels in the stretch.

    Returns
    -------
    level : float
        Level of the background [levels].
    spread : float
        Standard deviation of the background's pixels [levels]; 0 for a constant image.

    Examples
    --------
    >>> find_background(np.array([0, 5, 10, 5, 0, 0, 1, 1, 1]))
    (2.0, 1.0)
    """
    total = histogram.sum()
    if total == 0:
        return 0.0, 0.0
    cumulative = np.concatenate([[0], np.cumsum(histogram)])
    wanted = max(1, int(np.ceil(fraction * total)))
    # For each first level the last one that completes the stretch.
    starts = np.flatnonzero(histogram)
    ends = np.searchsorted(cumulative, cumulative[starts] + wanted, side="left")
    possible = ends < len(cumulative)
    starts, ends = starts[possible], ends[possible]
    widths = ends - starts
    narrowest = np.flatnonzero(widths == widths.min())
    # Of equally narrow stretches the fullest is nearest the mode.
    inside = cumulative[ends[narrowest]] - cumulative[starts[narrowest]]
    best = narrowest[np.argmax(inside)]
    first, last = starts[best], ends[best]
    middle = cumulative[first] + (cumulative[last] - cumulative[first]) / 2
    level = float(np.searchsorted(cumulative, middle, side="left") - 1)
    below = cumulative[int(level)] + histogram[int(level)] / 2
    # 31.7 % of the lower half of a normal distribution lies below one standard deviation.
    low = float(np.searchsorted(cumulative, 0.3173 * below, side="left") - 1)
    return level, max(level - low, 0.0)


def otsu(histogram, *, log=False, offset=0.0):
    """Find the level that best splits a histogram into two classes, by Otsu's criterion.

    Parameters
    ----------
    histogram : ndarray of int64, shape (L,)
    log : bool
        Split the logarithms of the levels above `offset`, which suits objects of very different brightness.
    offset : float
        Level that counts as zero for the logarithm [levels].

    Returns
    -------
    float
        Pixels above this level [levels] are foreground.

    Examples
    --------
    >>> otsu(np.array([0, 9, 9, 0, 0, 0, 0, 4, 4]))
    4.5
    """
    levels = np.flatnonzero(histogram)
    if len(levels) < 2:
        return float(levels[0]) if len(levels) else 0.0
    counts = histogram[levels].astype(np.float64)
    values = np.log(np.maximum(levels - offset, 1.0)) if log else levels.astype(np.float64)
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sum_below = np.cumsum(counts * values)[:-1]
    mean_below = sum_below / below
    mean_above = ((counts * values).sum() - sum_below) / above
    at = int(np.argmax(below * above * (mean_above - mean_below) ** 2))
    return float(levels[at] + levels[at + 1]) / 2


def minimum_cross_entropy(histogram, *, offset=0.0):
    """Find the level that splits a histogram with the least cross entropy (Li).

    Parameters
    ----------
    histogram : ndarray of int64, shape (L,)
    offset : float
        Level that counts as zero [levels]; lower levels are raised to it.

    Returns
    -------
    float
        Pixels above this level [levels] are foreground.

    Notes
    -----
    The minimum is searched over all levels: the usual iteration stops at whichever minimum lies next to its start.
    Li and Tam, doi:10.1016/S0167-8655(98)00057-9.
    """
    levels = np.flatnonzero(histogram)
    if len(levels) < 2:
        return float(levels[0]) if len(levels) else 0.0
    counts = histogram[levels].astype(np.float64)
    values = np.maximum(levels - offset, 0.0) + 1.0
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sum_below = np.cumsum(counts * values)[:-1]
    sum_above = (counts * values).sum() - sum_below
    entropy = -sum_below * np.log(sum_below / below) - sum_above * np.log(sum_above / above)
    at = int(np.argmin(entropy))
    return float(levels[at] + levels[at + 1]) / 2
