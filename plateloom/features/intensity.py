"""Intensity: sums, moments and quantiles of an object's intensities in 0 … 1, and the same on its edge.

The edge is the inner boundary by 4-neighbors; the border of the image is no boundary.
"""

import numpy as np

from plateloom.compilation import kernel

MEASUREMENTS = (
    "IntegratedIntensity",
    "MeanIntensity",
    "StdIntensity",
    "MinIntensity",
    "MaxIntensity",
    "IntegratedIntensityEdge",
    "MeanIntensityEdge",
    "StdIntensityEdge",
    "MinIntensityEdge",
    "MaxIntensityEdge",
    "MassDisplacement",
    "LowerQuartileIntensity",
    "MedianIntensity",
    "MADIntensity",
    "UpperQuartileIntensity",
)


def columns(channels, **options):
    """Column names without the compartment."""
    return [f"Intensity_{measurement}_{channel}" for channel in channels for measurement in MEASUREMENTS]


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
    ndarray of float64, shape (N, 15 C)
        MassDisplacement [px] is NaN where the object has no intensity. Where the object fills the image and so has no
        edge, its sum, minimum and maximum there are 0 and mean and standard deviation NaN.
    """
    edge = _find_edges(index.objects, index.rows, index.columns)
    return measure_values(index, edge).reshape(len(index.labels), len(channels) * len(MEASUREMENTS))


def measure_values(index, edge):
    """Measure all channels, given which of the listed pixels are edge.

    Parameters
    ----------
    index : PixelIndex
        N objects, P pixels.
    edge : ndarray of bool, shape (P,)

    Returns
    -------
    ndarray of float64, shape (N, C, 15)
        In the order of `MEASUREMENTS`.
    """
    out = np.empty((len(index.labels), len(index.values), len(MEASUREMENTS)))
    for c, values in enumerate(index.values):
        _measure_channel(values, index.levels, edge, index.offsets, index.rows, index.columns, out[:, c])
    return out


@kernel
def _find_edges(objects, rows, columns):
    """Flag the pixels with a 4-neighbor inside the image that is not of the same object."""
    edge = np.empty(len(rows), np.bool_)
    for k in range(len(rows)):
        row, column = rows[k] + 1, columns[k] + 1
        number = objects[row, column]
        up, down = objects[row - 1, column], objects[row + 1, column]
        left, right = objects[row, column - 1], objects[row, column + 1]
        edge[k] = (
            (up != number and up >= 0)
            or (down != number and down >= 0)
            or (left != number and left >= 0)
            or (right != number and right >= 0)
        )
    return edge


@kernel
def _measure_channel(values, levels, edge, offsets, rows, columns, out):
    """Fill the (N, 15) measurements of one channel."""
    for i in range(len(offsets) - 1):
        first, last = offsets[i], offsets[i + 1]
        top, left = rows[first], columns[first]
        total, edge_total, area, edge_area = 0.0, 0.0, last - first, 0
        low, high, edge_low, edge_high = np.inf, -np.inf, np.inf, -np.inf
        row_sum, column_sum, mass_row, mass_column = 0, 0, 0.0, 0.0
        for k in range(first, last):
            value, row, column = values[k], rows[k] - top, columns[k] - left
            total += value
            low, high = min(low, value), max(high, value)
            row_sum += row
            column_sum += column
            mass_row += value * row
            mass_column += value * column
            if edge[k]:
                edge_area += 1
                edge_total += value
                edge_low, edge_high = min(edge_low, value), max(edge_high, value)
        mean, edge_mean = total / area, edge_total / edge_area
        squares, edge_squares = 0.0, 0.0
        for k in range(first, last):
            squares += (values[k] - mean) ** 2
            if edge[k]:
                edge_squares += (values[k] - edge_mean) ** 2
        out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = total, mean, np.sqrt(squares / area), low, high
        out[i, 5], out[i, 6], out[i, 7] = edge_total, edge_mean, np.sqrt(edge_squares / edge_area)
        out[i, 8], out[i, 9] = (edge_low, edge_high) if edge_area else (0.0, 0.0)
        out[i, 10] = np.sqrt((mass_column / total - column_sum / area) ** 2 + (mass_row / total - row_sum / area) ** 2)
        ordered = _sort(values[first:last], levels, low, high)
        median = _quantile(ordered, 0.5)
        out[i, 11], out[i, 12] = _quantile(ordered, 0.25), median
        out[i, 13], out[i, 14] = _median_deviation(ordered, median), _quantile(ordered, 0.75)


@kernel
def _sort(values, levels, low, high):
    """Sort ascending: integer levels by one or two passes over their bytes, floats by as many bins as there are."""
    base, span = int(low * levels + 0.5), int((high - low) * levels + 0.5)
    if levels == 0.0 or span > 65535:
        return _sort_floats(values, low, high)
    steps, following = np.empty(len(values), np.uint16), np.empty(len(values), np.uint16)
    for k in range(len(values)):
        steps[k] = int(values[k] * levels + 0.5) - base
    for shift in range(0, 16 if span > 255 else 8, 8):
        starts = np.zeros(257, np.int64)
        for k in range(len(steps)):
            starts[((steps[k] >> shift) & 255) + 1] += 1
        for digit in range(256):
            starts[digit + 1] += starts[digit]
        for k in range(len(steps)):
            digit = (steps[k] >> shift) & 255
            following[starts[digit]] = steps[k]
            starts[digit] += 1
        steps, following = following, steps
    ordered = np.empty(len(values))
    for k in range(len(values)):
        ordered[k] = (base + steps[k]) / levels
    return ordered


@kernel
def _sort_floats(values, low, high):
    """Sort ascending by bins of equal width, then within them; by comparison where the bins are too uneven to help."""
    count = len(values)
    scale = count / (high - low)
    if count < 16 or not 0.0 < scale < np.inf:
        return np.sort(values)
    starts = np.zeros(count + 2, np.int64)
    for k in range(count):
        starts[int((values[k] - low) * scale) + 1] += 1
    if starts.max() > 64:
        return np.sort(values)
    for bin in range(count + 1):
        starts[bin + 1] += starts[bin]
    ordered = np.empty(count)
    for k in range(count):
        bin = int((values[k] - low) * scale)
        ordered[starts[bin]] = values[k]
        starts[bin] += 1
    for k in range(1, count):
        value, place = ordered[k], k
        while place > 0 and ordered[place - 1] > value:
            ordered[place] = ordered[place - 1]
            place -= 1
        ordered[place] = value
    return ordered


@kernel
def _quantile(ordered, fraction):
    """Interpolate at position n * fraction (CellProfiler's rule, not numpy's), clamped to the last value."""
    position = len(ordered) * fraction
    k = int(position)
    if k >= len(ordered) - 1:
        return ordered[len(ordered) - 1]
    weight = position - k
    return ordered[k] * (1.0 - weight) + ordered[k + 1] * weight


@kernel
def _median_deviation(ordered, median):
    """Take the same median of the absolute deviations: merged from the sorted values on both sides of the median."""
    above = np.searchsorted(ordered, median)
    below = above - 1
    position = len(ordered) * 0.5
    k = int(position)
    here, following = 0.0, 0.0
    for _ in range(min(k + 2, len(ordered))):
        here = following
        if above >= len(ordered) or (below >= 0 and median - ordered[below] <= ordered[above] - median):
            following = median - ordered[below]
            below -= 1
        else:
            following = ordered[above] - median
            above += 1
    if k >= len(ordered) - 1:
        return following
    weight = position - k
    return here * (1.0 - weight) + following * weight
