"""Correlation: how two channels vary together within an object, for every pair of channels.

Pearson's correlation sees all of the object's pixels. Overlap, K, Manders and RWC (rank weighted) see those that reach
15 % of the object's maximum. Ranks are taken over the pixels of all objects of the compartment together, Costes'
thresholds from all pixels of the image, so these two depend on more than the object. Equal intensities share a rank:
the number of different intensities below.
"""

import itertools

import numpy as np

from plateloom.compilation import kernel
from plateloom.features.costes import find_thresholds

# Of every pair, and of every pair in both orders.
_SYMMETRIC = ("Correlation", "Overlap")
_DIRECTED = ("K", "Manders", "RWC", "Costes")


def columns(channels, **options):
    """Column names without the compartment."""
    return [
        f"Correlation_{measurement}_{one}_{other}"
        for first, second in itertools.combinations(channels, 2)
        for measurement in _SYMMETRIC + _DIRECTED
        for one, other in ((first, second), (second, first))[: 1 if measurement in _SYMMETRIC else 2]
    ]


def measure(index, image, channels, *, bit_depth=16, **options):
    """Measure the columns.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`.
    bit_depth : int
        Costes' thresholds of a float image are looked for in as many steps as this has levels [bit].

    Returns
    -------
    ndarray of float64, shape (N, 5 C (C - 1))
        Correlation is NaN where a channel is constant in the object. The others are NaN where there is nothing to divide
        by: a channel is zero, no pixel counts in both, or none reaches Costes' threshold. But as in CellProfiler they
        are 0 if no object of the compartment has a pixel that counts in both.
    """
    if bit_depth != int(bit_depth) or not 1 <= bit_depth <= 16:
        raise ValueError(f"bit_depth is a whole number of bits from 1 to 16, found {bit_depth!r}.")
    steps = int(index.levels) or 2 ** int(bit_depth) - 1
    thresholds = index.shared.once(("Correlation", "Costes"), lambda: find_thresholds(image, index.levels, steps))
    ranks, distinct = _rank(index.values, index.levels)
    return _correlate(index.values, index.offsets, ranks, distinct, thresholds)


@kernel
def _correlate(values, offsets, ranks, distinct, costes):
    """Measure every pair of channels."""
    channels, count = len(values), len(offsets) - 1
    out = np.empty((count, 5 * channels * (channels - 1)))
    described = np.empty((channels, 4))
    counted = np.zeros((len(costes), 2), np.bool_)
    for i in range(count):
        pixels = slice(offsets[i], offsets[i + 1])
        for c in range(channels):
            _describe(values[c, pixels], described[c])
        pair = 0
        for a in range(channels):
            for b in range(a + 1, channels):
                x, y, row = values[a, pixels], values[b, pixels], out[i, 10 * pair : 10 * pair + 10]
                row[0] = _correlate_pixels(x, y, described[a], described[b])
                weights = ranks[a, pixels], ranks[b, pixels], max(distinct[a], distinct[b])
                counted[pair, 0] |= _overlap(x, y, weights, described[a], described[b], row)
                counted[pair, 1] |= _colocalize(x, y, costes[pair, 0], costes[pair, 1], row)
                pair += 1
    for pair in range(len(costes)):
        if not counted[pair, 0]:
            out[:, 10 * pair + 1 : 10 * pair + 8] = 0.0
        if not counted[pair, 1]:
            out[:, 10 * pair + 8 : 10 * pair + 10] = 0.0
    return out


@kernel
def _describe(values, described):
    """Fill in mean, norm of the deviations from it, 15 % of the maximum, and the sum of what reaches that."""
    total, low, high = 0.0, np.inf, -np.inf
    for value in values:
        total += value
        low, high = min(low, value), max(high, value)
    mean, threshold = total / len(values), 0.15 * high
    squares, bright = 0.0, 0.0
    for value in values:
        squares += (value - mean) ** 2
        bright += value if value >= threshold else 0.0
    # A constant's deviations from its rounded mean are noise.
    described[0], described[1] = mean, np.sqrt(squares) if high > low else 0.0
    described[2], described[3] = threshold, bright


@kernel
def _correlate_pixels(x, y, described_x, described_y):
    """Pearson's correlation."""
    covariance, mean_x, mean_y = 0.0, described_x[0], described_y[0]
    for k in range(len(x)):
        covariance += (x[k] - mean_x) * (y[k] - mean_y)
    scale = described_x[1] * described_y[1]
    return covariance / scale if scale > 0.0 else np.nan


@kernel
def _overlap(x, y, weights, described_x, described_y, row):
    """Fill in overlap, K, Manders and RWC; return whether any pixel counts.

    The weights are the ranks in both channels and the larger number of them.
    """
    ranks_x, ranks_y, largest = weights
    threshold_x, bright_x, threshold_y, bright_y = described_x[2], described_x[3], described_y[2], described_y[3]
    counted = False
    sum_x, sum_y, squares_x, squares_y, products, weighted_x, weighted_y = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(len(x)):
        counts = x[k] >= threshold_x and y[k] >= threshold_y
        counted |= counts
        u, v = x[k] if counts else 0.0, y[k] if counts else 0.0
        weight = largest - abs(ranks_x[k] - ranks_y[k])
        sum_x += u
        sum_y += v
        squares_x += u * u
        squares_y += v * v
        products += u * v
        weighted_x += u * weight
        weighted_y += v * weight
    row[1] = products / np.sqrt(squares_x * squares_y)
    row[2], row[3] = products / squares_x, products / squares_y
    row[4], row[5] = sum_x / bright_x, sum_y / bright_y
    row[6], row[7] = weighted_x / largest / bright_x, weighted_y / largest / bright_y
    return counted


@kernel
def _colocalize(x, y, threshold_x, threshold_y, row):
    """Fill in Costes: of what reaches one threshold, how much lies above both; return whether any pixel does."""
    counted = False
    sum_x, sum_y, above_x, above_y = 0.0, 0.0, 0.0, 0.0
    for k in range(len(x)):
        counts = x[k] > threshold_x and y[k] > threshold_y
        counted |= counts
        sum_x += x[k] if counts else 0.0
        sum_y += y[k] if counts else 0.0
        above_x += x[k] if x[k] >= threshold_x else 0.0
        above_y += y[k] if y[k] >= threshold_y else 0.0
    row[8], row[9] = sum_x / above_x, sum_y / above_y
    return counted


@kernel
def _rank(values, levels):
    """Rank of every pixel per channel, and how many there are."""
    ranks = np.empty(values.shape, np.int32)
    distinct = np.empty(len(values), np.int64)
    for c in range(len(values)):
        if levels > 0.0:
            distinct[c] = _rank_levels(values[c], levels, ranks[c])
        else:
            distinct[c] = _rank_floats(values[c], ranks[c])
    return ranks, distinct


@kernel
def _rank_levels(values, levels, ranks):
    """Fill in the ranks of integers by a table of the levels that occur; return their number."""
    table = np.zeros(int(levels) + 1, np.int32)
    for k in range(len(values)):
        ranks[k] = int(values[k] * levels + 0.5)
        table[ranks[k]] = 1
    distinct = 0
    for level in range(len(table)):
        distinct, table[level] = distinct + table[level], distinct
    for k in range(len(values)):
        ranks[k] = table[ranks[k]]
    return distinct


@kernel
def _rank_floats(values, ranks):
    """Fill in the ranks of floats by sorting their bits, the last digit first; return how many differ."""
    count, digits, width = len(values), 6, 11
    keys, order = np.empty(count, np.uint64), np.empty(count, np.int32)
    following_keys, following_order = np.empty(count, np.uint64), np.empty(count, np.int32)
    starts = np.zeros((digits, (1 << width) + 1), np.int64)
    last, sign = np.uint64((1 << width) - 1), np.uint64(1 << 63)
    # Adding 0 turns -0 into 0.
    bits = (values + 0.0).view(np.uint64)
    for k in range(count):
        keys[k] = ~bits[k] if bits[k] & sign else bits[k] | sign
        order[k] = k
        for j in range(digits):
            starts[j, ((keys[k] >> np.uint64(width * j)) & last) + np.uint64(1)] += 1
    for j in range(digits):
        # Floats of single precision leave digits empty.
        if starts[j].max() == count:
            continue
        for digit in range(1 << width):
            starts[j, digit + 1] += starts[j, digit]
        for k in range(count):
            digit = (keys[k] >> np.uint64(width * j)) & last
            place = starts[j, digit]
            starts[j, digit] = place + 1
            following_keys[place], following_order[place] = keys[k], order[k]
        keys, following_keys, order, following_order = following_keys, keys, following_order, order
    rank = -1
    for k in range(count):
        rank += k == 0 or keys[k] != keys[k - 1]
        ranks[order[k]] = rank
    return rank + 1
