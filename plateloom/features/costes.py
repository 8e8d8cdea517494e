"""Costes' automatic thresholds of every pair of channels, from all pixels of the image.

By CellProfiler's method "Faster". The thresholds run down the line that fits both channels (orthogonal regression over
the pixels that are not zero in both), in as many steps as the bit depth has levels; a bisection looks for the step below
which the pixels under either threshold no longer correlate positively. Whether they do is decided in exact arithmetic
for integer images; a correlation of exactly 0 counts as positive.
"""

import itertools
import typing

import numpy as np

from plateloom.compilation import kernel


def find_thresholds(image, levels, steps):
    """Find the thresholds of every pair of channels.

    Parameters
    ----------
    image : ndarray of uint8, uint16 or float64, shape (C, Y, X)
        Intensities.
    levels : float
        Largest value of an integer image, equal to `steps`; 0 for a float image.
    steps : int
        How many steps there are from 0 to 1: 255 for 8 bit.

    Returns
    -------
    ndarray of float64, shape (C (C - 1) / 2, 2)
        Thresholds of the first and the second channel of every pair, in 0 … 1. They are 0 and NaN where no line fits,
        such as for a constant channel.
    """
    grid = np.arange(steps + 1) / steps
    channels = [_describe(plane.reshape(-1), levels, grid) for plane in image]
    pairs = [_find_pair(first, second, levels, grid) for first, second in itertools.combinations(channels, 2)]
    return np.array(pairs).reshape(-1, 2)


class _Channel(typing.NamedTuple):
    """What is the same in all pairs; of an integer image the pixels only."""

    pixels: np.ndarray  # flat
    center: float  # from where deviations are summed: near the mean
    span: float  # largest - smallest intensity
    passed: np.ndarray | None  # the first step above every pixel


def _describe(pixels, levels, grid):
    """Gather what is the same in all pairs."""
    if levels:
        return _Channel(pixels, 0, 0.0, None)
    low, high = (float(pixels.min()), float(pixels.max())) if len(pixels) else (0.0, 0.0)
    # A constant is at its center exactly, even if its mean is rounded.
    center = min(max(float(pixels.mean()), low), high) if len(pixels) else 0.0
    return _Channel(pixels, center, high - low, _find_turns(pixels, grid, 1.0, 0.0, False))


def _find_pair(first, second, levels, grid):
    """Find the thresholds of one pair of channels."""
    x, y, steps, unit = first.pixels, second.pixels, len(grid) - 1, levels or 1.0
    slope, offset = _fit_line(_sum_moments(x, y, first.center, second.center), first.center, second.center, unit)
    with np.errstate(invalid="ignore"):
        line, falling = slope * grid + offset, slope < 0
    if levels:
        sums = _sum_levels(x, y, _find_turns(grid, line, slope, offset, falling), falling)
    else:
        turns = _find_turns(y, line, slope, offset, falling)
        sums = _sum_floats(x, y, first.center, second.center, first.passed, turns, steps, falling)
    # What rounding may leave of a covariance that is 0, per pixel that was summed.
    doubt = 1e-12 * first.span * second.span

    def correlate(step):
        """Return a number with the sign of the correlation below the thresholds of a step; NaN where undefined."""
        count, sum_x, sum_y, products = sums[step].tolist()
        if count <= 2:
            return -1.0
        covariance = count * products - sum_x * sum_y
        if abs(covariance) > doubt * count * (len(x) if falling else count):
            return covariance
        below = (x / unit < grid[step]) | (y / unit < line[step])
        if np.ptp(x[below]) == 0 or np.ptp(y[below]) == 0:
            return np.nan
        return covariance if levels else np.dot(x[below] - x[below].mean(), y[below] - y[below].mean())

    threshold = (_bisect(correlate, steps) - 1) / steps
    return threshold, slope * threshold + offset


def _bisect(correlate, steps):
    """Return the lowest step at which the bisection met a positive correlation."""
    left, right, last, found = 1, steps, 0, 1
    # Steps far below the threshold correlate erratically: CellProfiler tries the one at 5/6 of the window.
    step = int((right - left) // (6 / 5)) + left
    while step != last:
        correlation = correlate(step)
        if correlation < 0:
            left = step - 1
        elif correlation >= 0:
            right, found = step + 1, step
        last = step
        step = int((right - left) // (6 / 5 if right - left > 6 else 2)) + left
    return found


def _fit_line(moments, center_x, center_y, unit):
    """Return slope and offset of the orthogonal regression; NaN or infinite where there is none."""
    count, sum_x, sum_y, squares_x, squares_y, products = moments
    pixels, pairs = np.float64(count) * unit, np.float64(count * (count - 1)) * unit**2
    with np.errstate(all="ignore"):
        variance_x = (count * squares_x - sum_x * sum_x) / pairs
        variance_y = (count * squares_y - sum_y * sum_y) / pairs
        covariance = (count * products - sum_x * sum_y) / pairs
        difference = variance_y - variance_x
        slope = (difference + np.sqrt(difference * difference + 4 * covariance * covariance)) / (2 * covariance)
        offset = center_y / unit + sum_y / pixels - slope * (center_x / unit + sum_x / pixels)
    return float(slope), float(offset)


@kernel
def _sum_moments(first, second, center_x, center_y):
    """Number, sums, sums of squares and of products of the pixels that are not zero in both channels."""
    count, zero = 0, center_x - center_x
    sum_x, sum_y, squares_x, squares_y, products = zero, zero, zero, zero, zero
    for k in range(len(first)):
        inside = first[k] > 0 or second[k] > 0
        x, y = inside * (first[k] - center_x), inside * (second[k] - center_y)
        count += inside
        sum_x += x
        sum_y += y
        squares_x += x * x
        squares_y += y * y
        products += x * y
    return count, sum_x, sum_y, squares_x, squares_y, products


@kernel
def _find_turns(values, line, slope, offset, falling):
    """For every value, the first step at which the line is above it or, if the line falls, no longer above it."""
    turns, scale = np.empty(len(values), np.int32), (len(line) - 1) / slope
    for k in range(len(values)):
        turns[k] = _find_turn(values[k], line, scale, offset, falling)
    return turns


@kernel
def _find_turn(value, line, scale, offset, falling):
    """Find it for one value; `scale` is a step's reciprocal, the answer beyond the last step if there is none."""
    # The guess is nearly always right, but what decides is the line as it was rounded.
    guess = (value - offset) * scale
    guess = np.ceil(guess) if falling else np.floor(guess) + 1.0
    step = int(min(max(guess, 0.0), float(len(line)))) if guess == guess else 0
    if (step == len(line) or (value < line[step]) != falling) and (step == 0 or (value < line[step - 1]) == falling):
        return step
    low, high = 0, len(line)
    while low < high:
        step = (low + high) // 2
        if (value < line[step]) != falling:
            high = step
        else:
            low = step + 1
    return low


@kernel
def _sum_levels(first, second, turns, falling):
    """Number, sums and sum of products of the pixels below the thresholds of every step, in int64."""
    sums = np.zeros((len(turns) + 1, 4), np.int64)
    for k in range(len(first)):
        x, y = np.int64(first[k]), np.int64(second[k])
        _enter(sums, x, y, x + 1, turns[y], falling)
    _accumulate(sums)
    return sums


@kernel
def _sum_floats(first, second, center_x, center_y, passed, turns, steps, falling):
    """Sum the same of floats, as deviations from the centers."""
    sums = np.zeros((steps + 2, 4))
    for k in range(len(first)):
        _enter(sums, first[k] - center_x, second[k] - center_y, passed[k], turns[k], falling)
    _accumulate(sums)
    return sums


@kernel
def _enter(sums, x, y, passed, turn, falling):
    """Note at which steps a pixel enters and leaves the pixels below the thresholds.

    It is below the first channel's from step `passed` on; below the second's from `turn` on or, if that falls, before.
    """
    if not falling:
        _add(sums[min(passed, turn)], 1, x, y)
        return
    _add(sums[0], 1, x, y)
    if turn < passed:
        _add(sums[turn], -1, x, y)
        _add(sums[passed], 1, x, y)


@kernel
def _add(row, sign, x, y):
    """Add a pixel to the sums of a step or take it off."""
    row[0] += sign
    row[1] += sign * x
    row[2] += sign * y
    row[3] += sign * x * y


@kernel
def _accumulate(sums):
    """Turn what enters at every step into what is there."""
    for step in range(1, len(sums)):
        for j in range(4):
            sums[step, j] += sums[step - 1, j]
