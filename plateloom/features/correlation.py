"""Correlation: how two channels vary together within an object, for every pair of channels."""

import itertools

import numpy as np

from plateloom.features.compilation import kernel


def columns(channels, **options):
    """Column names without the compartment."""
    return [
        f"Correlation_{measurement}_{first}_{second}"
        for first, second in itertools.combinations(channels, 2)
        for measurement in ("Correlation", "Overlap")
    ]


def measure(index, image, channels, **options):
    """Measure the columns.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`.

    Returns
    -------
    ndarray of float64, shape (N, C (C - 1))
        Pearson's correlation is NaN where a channel is constant in the object. The overlap counts the pixels that reach
        15 % of the object's maximum in both channels; it is NaN where there is none, or where a channel is zero.
    """
    return _correlate(index.values, index.offsets)


@kernel
def _correlate(values, offsets):
    """Correlation and overlap of every pair of channels."""
    channels, count = len(values), len(offsets) - 1
    out = np.empty((count, channels * (channels - 1)))
    mean, norm, threshold = np.empty(channels), np.empty(channels), np.empty(channels)
    for i in range(count):
        first, last = offsets[i], offsets[i + 1]
        for c in range(channels):
            total, low, high = 0.0, np.inf, -np.inf
            for k in range(first, last):
                total += values[c, k]
                low, high = min(low, values[c, k]), max(high, values[c, k])
            mean[c] = total / (last - first)
            threshold[c] = 0.15 * high
            squares = 0.0
            for k in range(first, last):
                squares += (values[c, k] - mean[c]) ** 2
            # A constant's deviations from its rounded mean are noise.
            norm[c] = np.sqrt(squares) if high > low else 0.0
        column = 0
        for a in range(channels):
            for b in range(a + 1, channels):
                covariance, products, squares_a, squares_b = 0.0, 0.0, 0.0, 0.0
                for k in range(first, last):
                    x, y = values[a, k], values[b, k]
                    covariance += (x - mean[a]) * (y - mean[b])
                    if x >= threshold[a] and y >= threshold[b]:
                        products += x * y
                        squares_a += x * x
                        squares_b += y * y
                scale = norm[a] * norm[b]
                out[i, column] = covariance / scale if scale > 0.0 else np.nan
                out[i, column + 1] = products / np.sqrt(squares_a * squares_b)
                column += 2
    return out
