"""Texture: Haralick's thirteen measures of how the levels of pixels at a given distance occur together.

Notes
-----
Definitions are those of mahotas, which CellProfiler calls with the box of an object: 256 levels, rint(255 x) of an
intensity x; a pixel outside of the object or of level 0 is in no pair; each pair counts both ways. Entropies are in
bits, the difference variance is that of the probabilities of the differences 0 … highest level of the object, and the
correlation of a constant is 1. An object that has no pair in one of the directions is 0 in all measures of this scale.

Haralick, R. M., Shanmugam, K., and Dinstein, I. (1973). https://doi.org/10.1109/TSMC.1973.4309314
"""

import numpy as np

from plateloom.compilation import kernel

_MEASUREMENTS = (
    "AngularSecondMoment",
    "Contrast",
    "Correlation",
    "Variance",
    "InverseDifferenceMoment",
    "SumAverage",
    "SumVariance",
    "SumEntropy",
    "Entropy",
    "DifferenceVariance",
    "DifferenceEntropy",
    "InfoMeas1",
    "InfoMeas2",
)
_DIRECTIONS = 4
_LEVELS = 256


def columns(channels, *, texture_scales=(3,), **options):
    """Column names without the compartment; directions 00 to 03 lead to the right, diagonally down, down, and down left."""
    return [
        f"Texture_{measurement}_{channel}_{scale}_{direction:02d}_{_LEVELS}"
        for measurement in _MEASUREMENTS
        for channel in channels
        for scale in texture_scales
        for direction in range(_DIRECTIONS)
    ]


def measure(index, image, channels, *, texture_scales=(3,), **options):
    """Measure the columns.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`.
    texture_scales : sequence of int, length S
        Distances between the pixels of a pair, along both axes in the diagonal directions [px].

    Returns
    -------
    ndarray of float64, shape (N, 52 C S)
        0 in all measures and directions of a scale where one direction has no pair.
    """
    scales = np.array(texture_scales).reshape(-1)
    if len(set(scales)) < len(scales) or not all(scale == int(scale) and scale >= 1 for scale in scales):
        raise ValueError(f"texture_scales are different whole numbers of pixels from 1 on, found {texture_scales!r}.")
    levels = index.shared.once(("Texture", "levels"), lambda: _quantize(image))
    # n log2(n): the sum over the counts of a histogram gives its entropy.
    logs = np.arange(2.0 * index.areas.max(initial=0) + 1)
    logs[1:] *= np.log2(logs[1:])
    table = _measure_objects(
        levels.reshape(len(levels), levels.shape[1] * levels.shape[2]),
        levels.shape[2],
        index.offsets,
        index.rows,
        index.columns,
        index.bounds,
        scales.astype(np.int64),
        logs,
    )
    return table.reshape(len(table), np.prod(table.shape[1:]))


def _quantize(image):
    """Round 255 times the intensities: ndarray of uint8, shape (C, Y, X)."""
    levels = np.empty(image.shape, np.uint8)
    for plane, out in zip(image, levels, strict=True):
        if plane.dtype == np.uint16:
            # The nearest to plane / 257, without ties and without leaving 16 bits.
            out[...] = (np.minimum(plane, 65535 - 128) + np.uint16(128)) // np.uint16(257)
        elif plane.dtype.kind == "f":
            out[...] = np.clip(np.rint(plane * 255.0), 0, 255)
        else:
            out[...] = plane
    return levels


@kernel
def _measure_objects(levels, width, offsets, rows, columns, bounds, scales, logs):
    """Measure every object, shape (N, 13, C, S, 4): cut out once per channel, then paired with itself in shifts."""
    count, channels = len(offsets) - 1, len(levels)
    out = np.zeros((count, len(_MEASUREMENTS), channels, len(scales), _DIRECTIONS))
    largest, room = 0, 0
    for i in range(count):
        height, breadth, reach = _box(bounds[i], scales)
        largest = max(largest, offsets[i + 1] - offsets[i])
        room = max(room, (height + reach) * (breadth + reach))
    sources, positions = np.empty(largest, np.uint32), np.empty(largest, np.uint32)
    crop, lower, gap = np.zeros(room, np.uint8), np.empty(room, np.uint8), np.empty(room, np.uint8)
    counts = (
        np.zeros(_LEVELS * _LEVELS, np.int32),
        np.zeros(_LEVELS, np.int32),
        np.zeros(_LEVELS, np.int32),
        np.zeros(_LEVELS, np.int32),
        np.zeros((2, _LEVELS), np.int32),
    )
    closeness = 1.0 / (1.0 + np.arange(_LEVELS) ** 2)
    for i in range(count):
        first, area = offsets[i], offsets[i + 1] - offsets[i]
        height, breadth, reach = _box(bounds[i], scales)
        # Zeros follow the box on the right, where a shift to the left arrives as well, and below.
        stride = breadth + reach
        inside = height * stride - reach
        for k in range(area):
            row, column = rows[first + k], columns[first + k]
            sources[k] = row * width + column
            positions[k] = (row - bounds[i, 0]) * stride + column - bounds[i, 1]
        pixels = positions[:area]
        for c in range(channels):
            base, top = _cut_out(levels[c], sources[:area], pixels, crop)
            for s in range(len(scales)):
                scale = scales[s]
                if scale > reach or top == 0:
                    continue
                shifts = (scale, scale * stride + scale, scale * stride, scale * stride - scale)
                for direction in range(_DIRECTIONS):
                    shift = shifts[direction]
                    widest = _pair(crop[:inside], crop[shift : shift + inside], base, lower, gap)
                    spread = top - base + 1
                    # Few levels: go through all combinations that may occur, else only through those that do.
                    if (widest + 1) * spread < area:
                        pairs = _count_cells(lower, gap, pixels, spread, counts)
                        power, bits = _collect_all(spread, widest, counts, logs)
                    else:
                        pairs = _count_everything(lower, gap, pixels, spread, counts)
                        power, bits = _collect_touched(lower, gap, pixels, spread, counts, logs)
                    if pairs == 0:
                        out[i, :, c, s] = 0.0
                        break
                    _derive(pairs, power, bits, base, top, widest, counts, logs, closeness, out[i, :, c, s, direction])
        for k in range(area):
            crop[positions[k]] = 0
    return out


@kernel
def _box(bounds, scales):
    """Height and breadth of an object's box and the largest scale at which it has pairs in every direction."""
    height, breadth = bounds[2] - bounds[0], bounds[3] - bounds[1]
    reach = 0
    for scale in scales:
        if scale < min(height, breadth):
            reach = max(reach, scale)
    return height, breadth, reach


@kernel
def _cut_out(levels, sources, positions, crop):
    """Copy the levels; return the highest, and the one below the lowest that is not 0."""
    base, top = np.uint8(255), np.uint8(0)
    for k in range(len(sources)):
        level = levels[sources[k]]
        crop[positions[k]] = level
        # Level 0 becomes 255 here.
        base = min(base, np.uint8(level - np.uint8(1)))
        top = max(top, level)
    return int(base), int(top)


@kernel
def _pair(crop, partners, base, lower, gap):
    """Lower level above the base and difference of every pair, both 0 where there is none; return the widest."""
    widest, floor = np.uint8(0), np.uint8(base)
    for k in range(len(crop)):
        level, partner = crop[k], partners[k]
        low = min(level, partner)
        difference = np.uint8(max(level, partner) - low) if low else np.uint8(0)
        lower[k] = max(low, floor) - floor
        gap[k] = difference
        widest = max(widest, difference)
    return int(widest)


@kernel
def _count_cells(lower, gap, pixels, spread, counts):
    """Count the pairs of every difference and lower level; return the number of pairs."""
    cells = counts[0]
    step = np.uint32(spread)
    for k in range(len(pixels)):
        p = pixels[k]
        cells[gap[p] * step + lower[p]] += 1
    missing = cells[0]
    cells[0] = 0
    return len(pixels) - missing


@kernel
def _collect_all(spread, widest, counts, logs):
    """Fill the marginal counts from all cells, which become 0 again; return the sums of `_collect_touched`."""
    cells, lowers, uppers, gaps, sums = counts
    power, bits = 0, 0.0
    for g in range(widest + 1):
        row = cells[g * spread : (g + 1) * spread - g]
        gaps[g] = _add_row(row, lowers, uppers[g:], sums[g & 1, g >> 1 :])
        squares = 0
        for m in range(len(row)):
            n = row[m]
            squares += n * n
            bits += logs[np.uint32(n)]
        power += squares if g else 2 * squares
        row[:] = 0
    return power, bits


@kernel
def _add_row(row, lowers, uppers, sums):
    """Add the pairs of one difference to the counts of lower levels, upper levels and sums; return their number."""
    total = 0
    for m in range(len(row)):
        n = row[m]
        total += n
        lowers[m] += n
        uppers[m] += n
        sums[m] += n
    return total


@kernel
def _count_everything(lower, gap, pixels, spread, counts):
    """Count the pairs and their marginals: lower level, upper level, difference, and sum, even ones first."""
    cells, lowers, uppers, gaps, sums = counts
    flat = sums.reshape(sums.size)
    step, half = np.uint32(spread), np.uint32(_LEVELS)
    for k in range(len(pixels)):
        p = pixels[k]
        m, g = np.uint32(lower[p]), np.uint32(gap[p])
        cells[g * step + m] += 1
        lowers[m] += 1
        uppers[m + g] += 1
        gaps[g] += 1
        flat[(g & np.uint32(1)) * half + m + (g >> np.uint32(1))] += 1
    # Pixels without a partner were counted as pairs of level 0.
    missing = cells[0]
    cells[0] = lowers[0] = uppers[0] = flat[0] = 0
    gaps[0] -= missing
    return len(pixels) - missing


@kernel
def _collect_touched(lower, gap, pixels, spread, counts, logs):
    """Sum n² (twice for equal levels) and n log2(n) over the cells' counts n; the cells become 0 again."""
    cells = counts[0]
    step = np.uint32(spread)
    power, bits = 0, 0.0
    for m in range(spread):
        power += cells[m] * cells[m]
    for k in range(len(pixels)):
        p = pixels[k]
        cell = gap[p] * step + lower[p]
        n = cells[cell]
        cells[cell] = 0
        power += n * n
        bits += logs[np.uint32(n)]
    return power, bits


@kernel
def _derive(pairs, power, bits, base, top, widest, counts, logs, closeness, out):
    """Fill the 13 measures from the counts of unordered pairs; the marginal counts become 0 again.

    The matrix of ordered pairs has every count twice, and twice the count where the levels are equal. Hence its entropy
    and power; and contrast, sum variance and correlation follow from the differences and one marginal.
    """
    _, lowers, uppers, gaps, sums = counts
    spread = top - base + 1
    total, squares, marginal_bits, sum_bits = 0, 0, 0.0, 0.0
    for m in range(1, spread):
        n = lowers[m] + uppers[m]
        total += n * m
        squares += n * m * m
        marginal_bits += logs[np.uint32(n)]
        sum_bits += logs[np.uint32(sums[0, m])] + logs[np.uint32(sums[1, m])]
        lowers[m] = uppers[m] = sums[0, m] = sums[1, m] = 0
    contrast, difference_power, difference_bits, homogeneity, equal = 0, 0, 0.0, 0.0, gaps[0]
    for g in range(widest + 1):
        n = gaps[g]
        contrast += n * g * g
        difference_power += n * n
        difference_bits += logs[np.uint32(n)]
        homogeneity += n * closeness[g]
        gaps[g] = 0
    number = float(pairs)
    mean = total / (2.0 * number)
    variance = (2.0 * number * squares - float(total) ** 2) / (2.0 * number) ** 2
    contrast /= number
    # Differences of the same table, so that they are exactly 0 for a constant.
    marginal_entropy = (logs[2 * pairs] - marginal_bits) / (2.0 * number)
    entropy = (logs[pairs] - bits + (pairs - equal)) / number
    out[0] = power / (2.0 * number**2)
    out[1] = contrast
    out[2] = 1.0 - contrast / (2.0 * variance) if variance > 0.0 else 1.0
    out[3] = variance
    out[4] = homogeneity / number
    out[5] = 2.0 * (base + mean)
    out[6] = 4.0 * variance - contrast
    out[7] = (logs[pairs] - sum_bits) / number
    out[8] = entropy
    out[9] = (difference_power * (top + 1.0) - number**2) / (number * (top + 1.0)) ** 2
    out[10] = (logs[pairs] - difference_bits) / number
    shared = 2.0 * marginal_entropy - entropy
    out[11] = -shared / marginal_entropy if marginal_entropy > 0.0 else 0.0
    out[12] = np.sqrt(max(0.0, 1.0 - np.exp(-2.0 * shared)))
