"""Granularity: how much of an object's intensity goes when bright structures are removed, from small to large ones.

The image is sampled at every 4th pixel and rid of its background, the opening by a disk of radius 10 of every 4th
sample. Step k removes the bright structures that do not hold a diamond of k samples in each direction (erosion, then
reconstruction) and leaves all others as they are. What it takes from the object's mean, in percent of the mean of the
object's own pixels, is the measurement; the first one contains the background.

All steps are read from one tree: its nodes are the connected components of the samples that are at least as bright as
a given one. A component goes as a whole, at the first step whose diamond it does not hold. How equally bright samples
are ordered makes no difference.

Values do not depend on the labels or on which objects are measured together. They do depend on the whole image, and on
where the objects lie on its grid of samples: an image that is moved, padded or cropped has others.
"""

import math

import numpy as np

from plateloom.compilation import kernel

_STEPS = 16
_SAMPLING = 4
_BACKGROUND_RADIUS = 10


def columns(channels, **options):
    """Column names without the compartment."""
    return [f"Granularity_{step}_{channel}" for channel in channels for step in range(1, _STEPS + 1)]


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
    ndarray of float64, shape (N, 16 C)
        Percent. Where the object has no intensity it is relative to the machine epsilon (CellProfiler's rule): enormous
        if samples around it have some, else 0.
    """
    count = len(index.labels)
    if not count:
        return np.empty((0, _STEPS * len(channels)))
    levels, endurance, heirs = index.shared.once("Granularity", lambda: _resolve_channels(image, index.levels))
    losses = _sum_losses(
        index.offsets,
        index.rows,
        index.columns,
        *(_place(size, size / _SAMPLING) for size in image.shape[1:]),
        _count_samples(image.shape[2]) + 2,
        levels,
        endurance,
        heirs,
    )
    areas = index.areas[:, None]
    means = np.add.reduceat(index.values, index.offsets[:-1], axis=1).T / areas
    losses /= areas[..., None]
    out = losses[..., :_STEPS]
    out[..., 0] = means - losses[..., 1:].sum(axis=2)
    return (out * 100 / np.maximum(means, np.finfo(float).eps)[..., None]).reshape(count, -1)


def _resolve_channels(image, scale):
    """Return the trees of all channels: levels, endurance and heirs, each of shape (C, S).

    S samples include a frame of width 1. A sample with its component endures so many steps; its heir is the nearest
    component around it that endures more. After step k the level of a sample is that of the first of its heirs, and
    their heirs, that endures k steps.
    """
    height, width = (_count_samples(size) for size in image.shape[1:])
    framed = len(image), height + 2, width + 2
    levels, endurance, heirs = np.zeros(framed), np.zeros(framed, np.uint8), np.zeros(framed, np.int32)
    for c, channel in enumerate(image):
        samples = _sample(channel, scale)
        order = np.argsort(samples, axis=None)
        positions = (order // width + 1) * (width + 2) + order % width + 1
        _grow_tree(positions, endurance[c], heirs[c])
        levels[c, 1:-1, 1:-1] = samples
    return tuple(array.reshape(len(image), framed[1] * framed[2]) for array in (levels, endurance, heirs))


def _sample(channel, scale):
    """Sample one channel, in 0 … 1, and subtract the background, itself sampled, opened and interpolated."""
    samples = np.array(channel[::_SAMPLING, ::_SAMPLING], np.float64, order="C")
    if scale:
        samples /= scale
    background = _erode(np.ascontiguousarray(samples[::_SAMPLING, ::_SAMPLING]), _BACKGROUND_RADIUS)
    background = np.pad(-_erode(-background, _BACKGROUND_RADIUS), (0, 1))
    _subtract(samples, background, *(_place(size / _SAMPLING, size / _SAMPLING**2) for size in channel.shape))
    return samples


def _count_samples(size):
    """Samples along an axis of so many pixels."""
    return -(-size // _SAMPLING)


def _place(size, sampled_size):
    """Place an axis' pixels between its samples: the sample before each of them, the weights of it and the next.

    CellProfiler's rules: the sizes may be fractions, the first and the last pixel lie where those of a grid of samples
    of this size do, and a pixel outside of the samples weighs nothing. Outside are at most the last one, by rounding,
    and all but the first one where the axis is shorter than the distance between samples.
    """
    # An axis of one pixel or of one sample: all lie at the first sample.
    step = (sampled_size - 1) / (size - 1) if size != 1 else 0.0
    positions = np.arange(math.ceil(size)) * step
    outside = (positions < 0) | (positions > math.ceil(sampled_size) - 1)
    positions[outside] = 0.0
    before = np.floor(positions).astype(np.int32)
    weights = np.empty((2, len(positions)))
    weights[0] = 1.0 - (positions - before)
    weights[1] = 1.0 - weights[0]
    weights[:, outside] = 0.0
    return before, weights


@kernel
def _erode(image, radius):
    """Take the minimum over a disk; what lies outside of the image does not count."""
    height, width = image.shape
    eroded = np.full((height, width), np.inf)
    # From the disk's uppermost row to its middle, each as long as the one before or longer.
    spread, reach = image.copy(), 0
    for rise in range(radius, -1, -1):
        while (reach + 1) ** 2 + rise**2 <= radius**2:
            reach += 1
            for row in range(height):
                for column in range(width - reach):
                    spread[row, column] = min(spread[row, column], image[row, column + reach])
                for column in range(reach, width):
                    spread[row, column] = min(spread[row, column], image[row, column - reach])
        for row in range(height - rise):
            for column in range(width):
                eroded[row, column] = min(eroded[row, column], spread[row + rise, column])
        for row in range(rise, height):
            for column in range(width):
                eroded[row, column] = min(eroded[row, column], spread[row - rise, column])
    return eroded


@kernel
def _subtract(samples, background, vertical, horizontal):
    """Subtract the interpolated background, down to 0; the terms in the order of scipy's map_coordinates."""
    (before_row, row_weights), (before_column, column_weights) = vertical, horizontal
    for row in range(len(before_row)):
        for column in range(len(before_column)):
            interpolated = 0.0
            for y in range(2):
                for x in range(2):
                    value = background[before_row[row] + y, before_column[column] + x]
                    interpolated += value * row_weights[y, row] * column_weights[x, column]
            samples[row, column] = max(samples[row, column] - interpolated, 0.0)


@kernel
def _grow_tree(order, endurance, heirs):
    """Fill endurance and heirs, of the framed samples' shape, from the samples' positions in ascending order."""
    width, endurance, heirs = endurance.shape[1], endurance.ravel(), heirs.ravel()
    steps = _measure_endurance(order, endurance.size // width, width)
    parents = _join_components(order, width, endurance.size)
    for rank in range(len(order) - 1, -1, -1):
        position = order[rank]
        endurance[position] = max(endurance[position], steps[rank])
        parent = parents[position]
        endurance[parent] = max(endurance[parent], endurance[position])
    for rank in range(len(order)):
        position = order[rank]
        parent = parents[position]
        heirs[position] = parent if endurance[parent] > endurance[position] else heirs[parent]


@kernel
def _measure_endurance(order, height, width):
    """Return the steps that each sample's component endures by the diamonds whose darkest sample it is, by rank."""
    ranks = np.full((height, width), len(order), np.int32)
    flat = ranks.ravel()
    for rank in range(len(order)):
        flat[order[rank]] = rank
    eroded = ranks.copy()
    steps = np.zeros(len(order), np.uint8)
    for step in range(1, _STEPS + 1):
        for row in range(1, height - 1):
            for column in range(1, width - 1):
                beside = min(ranks[row, column - 1], ranks[row, column + 1])
                along = min(ranks[row - 1, column], ranks[row + 1, column])
                eroded[row, column] = min(ranks[row, column], min(beside, along))
        for row in range(1, height - 1):
            for column in range(1, width - 1):
                steps[eroded[row, column]] = step
        ranks, eroded = eroded, ranks
    return steps


@kernel
def _join_components(order, width, size):
    """Return the parent of every sample: the next one by which its component grows, at lower levels, as a whole.

    Samples join the components of their 4-neighbors from the brightest down, smaller components larger ones; `lowest`
    is the sample that came last to each. Parents are positions, as in `order`.
    """
    parents = np.zeros(size, np.int32)
    roots = np.full(size, -1, np.int32)
    lowest = np.zeros(size, np.int32)
    sizes = np.ones(size, np.int32)
    for rank in range(len(order) - 1, -1, -1):
        position = order[rank]
        parents[position] = position
        roots[position] = position
        root = position
        for neighbor in (position - width, position - 1, position + 1, position + width):
            other = roots[neighbor]
            if other < 0:
                continue
            while roots[other] != other:
                roots[neighbor] = roots[other]
                neighbor, other = other, roots[other]
            if other != root:
                parents[lowest[other]] = position
                if sizes[other] > sizes[root]:
                    root, other = other, root
                roots[other] = root
                sizes[root] += sizes[other]
        lowest[root] = position
    return parents


@kernel
def _sum_losses(offsets, rows, columns, vertical, horizontal, width, levels, endurance, heirs):
    """Sum what each object's pixels, interpolated between the samples, lose after 0, 1, … 15 steps, and the rest.

    The interpolated image is never made: an object's pixels give weights to samples once, for all channels and steps.
    """
    (before_row, row_weights), (before_column, column_weights) = vertical, horizontal
    channels, size = levels.shape
    losses = np.zeros((len(offsets) - 1, channels, _STEPS + 1))
    weights = np.zeros(size)
    touched = np.empty(size, np.int32)
    for i in range(len(offsets) - 1):
        count, k, last = 0, offsets[i], offsets[i + 1]
        while k < last:
            # The pixels of a row that lie between the same two samples.
            row, before = rows[k], before_column[columns[k]]
            left, right = 0.0, 0.0
            while k < last and rows[k] == row and before_column[columns[k]] == before:
                left += column_weights[0, columns[k]]
                right += column_weights[1, columns[k]]
                k += 1
            position = (before_row[row] + 1) * width + before + 1
            for y in range(2):
                for x in range(2):
                    weight = row_weights[y, row] * (right if x else left)
                    if weight > 0.0:
                        sample = position + y * width + x
                        if weights[sample] == 0.0:
                            touched[count] = sample
                            count += 1
                        weights[sample] += weight
        for c in range(channels):
            for j in range(count):
                sample, weight = touched[j], weights[touched[j]]
                steps, level = endurance[c, sample], levels[c, sample]
                while steps < _STEPS:
                    sample = heirs[c, sample]
                    losses[i, c, steps] += weight * (level - levels[c, sample])
                    steps, level = endurance[c, sample], levels[c, sample]
                losses[i, c, _STEPS] += weight * level
        for j in range(count):
            weights[touched[j]] = 0.0
    return losses
