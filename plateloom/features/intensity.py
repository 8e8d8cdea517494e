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

_STEPS = 1 << 16
_SIDES = 1 | 4 | 16 | 64  # of `PixelIndex.surround`: the 4-neighbors above, behind, below and before


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
    measured = measure_values(index, _find_edges(index.surround, index.rows, index.columns, *image.shape[1:]))
    return measured.reshape(len(index.labels), len(channels) * len(MEASUREMENTS))


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
    sums, levels = index.sums, index.levels or 1.0
    places = np.flatnonzero(edge)
    starts = np.searchsorted(places, index.offsets)
    displacements = np.sqrt(((index.masses - index.middles) ** 2).sum(axis=2))
    # Integers are doubled, so that a median between two of them is an integer, too.
    doubled = index.levels > 0
    room = np.empty((2, index.areas.max(initial=0) + 1), np.int32 if doubled else np.float64)
    out = np.empty((len(index.labels), len(index.pixels), len(MEASUREMENTS)))
    for c, pixels in enumerate(index.pixels):
        moments = sums.total[c], sums.total[c] / index.areas, sums.deviation[c], sums.low[c], sums.high[c]
        out[:, c, :5] = np.column_stack(moments)
        _measure_edges(pixels, levels, places, starts, out[:, c, 5:10])
        out[:, c, 10] = displacements[c]
        _find_quantiles(pixels, doubled, index.offsets, room, out[:, c, 11:])
        out[:, c, 11:] /= 2 * levels if doubled else levels
    return out


@kernel
def _find_edges(surround, rows, columns, height, width):
    """Flag the pixels with a 4-neighbor inside the image that is not of the same object."""
    edge = np.empty(len(rows), np.bool_)
    for k in range(len(rows)):
        edge[k] = surround[k] & _SIDES != _SIDES
    for k in range(len(rows)):
        if edge[k]:
            above, below = 1 * (rows[k] == 0), 16 * (rows[k] == height - 1)
            before, behind = 64 * (columns[k] == 0), 4 * (columns[k] == width - 1)
            edge[k] = (surround[k] | above | below | before | behind) & _SIDES != _SIDES
    return edge


@kernel
def _measure_edges(pixels, levels, places, starts, out):
    """Fill in sum, mean, standard deviation, minimum and maximum of the pixels at some places of the list."""
    for i in range(len(out)):
        here = places[starts[i] : starts[i + 1]]
        count, total, squares, low, high = len(here), 0.0, 0.0, np.inf, -np.inf
        for k in here:
            value = float(pixels[k])
            total += value
            low, high = min(low, value), max(high, value)
        mean = total / count
        for k in here:
            squares += (pixels[k] - mean) ** 2
        out[i, 0], out[i, 1], out[i, 2] = total / levels, mean / levels, np.sqrt(squares / count) / levels
        out[i, 3], out[i, 4] = (low / levels, high / levels) if count else (0.0, 0.0)


@kernel
def _find_quantiles(pixels, doubled, offsets, room, out):
    """Fill in lower quartile, median, median of the deviations from it, and upper quartile, of the pixels or their doubles.

    They lie at position n * fraction (CellProfiler's rule, not numpy's), interpolated, and no higher than the last value.
    `room` is for two lists of an object's values and one more.
    """
    steps, coarse, fine = (
        np.empty(room.shape[1], np.uint16),
        np.empty(_STEPS >> 8, np.int32),
        np.zeros(_STEPS, np.int32),
    )
    ranks, places, found = np.empty(6, np.int64), np.empty(6, np.int64), np.empty(6)
    for i in range(len(offsets) - 1):
        n = offsets[i + 1] - offsets[i]
        values, listed = room[0, :n], pixels[offsets[i] : offsets[i + 1]]
        for k in range(n):
            values[k] = 2 * listed[k] if doubled else listed[k]
        for number in range(3):
            k = int(0.25 * (number + 1) * n)
            ranks[2 * number], ranks[2 * number + 1] = min(k, n - 1), min(k + 1, n - 1)
        _select(values, doubled, ranks, found, places, steps, coarse, fine, room[1])
        median = _between(found[2:4], 0.5 * n)
        out[i, 0], out[i, 1], out[i, 3] = _between(found[:2], 0.25 * n), median, _between(found[4:], 0.75 * n)
        for k in range(n):
            values[k] = abs(values[k] - median)
        _select(values, doubled, ranks[2:4], found, places, steps, coarse, fine, room[1])
        out[i, 2] = _between(found[:2], 0.5 * n)


@kernel
def _between(found, position):
    """Interpolate between the two values around a position."""
    weight = position - int(position)
    return found[0] * (1.0 - weight) + found[1] * weight


@kernel
def _select(values, doubled, ranks, found, places, steps, coarse, fine, room):
    """Fill in the values of ascending ranks, without sorting the others.

    Values are counted in steps of equal width and in blocks of steps. Doubled integers all are odd or all even: a step is
    one value. Of floats those in the steps of the ranks are sorted. `fine` is 0 everywhere, before and after.
    """
    n, low, high = len(values), values[0], values[0]
    for k in range(n):
        low, high = min(low, values[k]), max(high, values[k])
    count = int(high - low) // 2 + 1 if doubled else min(8 * n, _STEPS)
    scale = 0.5 if doubled else (count - 0.5) / (high - low)
    if low == high or not 0.0 < scale < np.inf:
        ordered = np.sort(values) if low < high else values
        for r in range(len(ranks)):
            found[r] = ordered[ranks[r]]
        return
    shift = 0
    while count >> 2 * shift > 0:
        shift += 1
    for k in range(n):
        steps[k] = np.int32((values[k] - low) * scale)
    coarse[:] = 0
    for k in range(n):
        coarse[steps[k] >> shift] += 1
        fine[steps[k]] += 1
    step, below, wanted, kept = 0, 0, -1, 0
    for r in range(len(ranks)):
        while below + fine[step] <= ranks[r]:
            block = step >> shift
            if step != wanted and step == block << shift and below + coarse[block] <= ranks[r]:
                below += coarse[block]
                step = (block + 1) << shift
            else:
                kept += fine[step] if step == wanted else 0
                below += fine[step]
                step += 1
        wanted, found[r], places[r] = step, low + 2 * step if doubled else step, kept + ranks[r] - below
    if not doubled:
        for r in range(len(ranks)):
            fine[int(found[r])] = -1
        kept = 0
        for k in range(n):
            room[kept] = values[k]
            kept += fine[steps[k]] < 0
        ordered = np.sort(room[:kept])
        for r in range(len(ranks)):
            found[r] = ordered[places[r]]
    for k in range(n):
        fine[steps[k]] = 0
