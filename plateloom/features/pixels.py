"""The pixels of a compartment's objects as one list, sorted by object: made once, read by all families."""

import functools
import threading
from typing import NamedTuple

import numpy as np

from plateloom.compilation import kernel

# The largest intensity of the types that a microscope writes.
LEVELS = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}

# Columns hold labels as float64: above this two of them could become one.
_LARGEST_LABEL = 1 << 53

# Above this a table from label to object would outgrow the image.
_LARGEST_TABLE = 1 << 24

# The squared distance of a pixel from an edge that there is not.
_NOWHERE = 1 << 30


class Shared:
    """What families compute once per image, whatever the number of compartments and threads."""

    def __init__(self):
        self._found, self._locks, self._lock = {}, {}, threading.Lock()

    def once(self, key, compute):
        """Return ``compute()`` of the first call with this key; other threads wait for it.

        Parameters
        ----------
        key : hashable
            Begins with the family's name.
        compute : callable
        """
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._found:
                self._found[key] = compute()
            return self._found[key]


class Sums(NamedTuple):
    """Sums and extremes of the objects' intensities: ndarrays of shape (C, N).

    Intensities are scaled to 0 … 1; `brightest` is the place in the list of the first of the brightest pixels.
    """

    total: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    brightest: np.ndarray


class PixelIndex:
    """Where every object's pixels are.

    P pixels of N objects; the pixels of object `i` are ``offsets[i]:offsets[i + 1]``, in row-major order.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X)
        Label image; 0 is background.
    image : ndarray of uint8, uint16 or float64, shape (C, Y, X)
        Intensities, as `check_image` returns them.
    shared : Shared, optional
        Of all compartments of this image.

    Attributes
    ----------
    labels : ndarray of int64, shape (N,)
        The labels that occur, ascending.
    offsets : ndarray of int64, shape (N + 1,)
        Where an object's pixels begin in the list.
    rows, columns : ndarray of int32, shape (P,)
        Position in the image [px].
    bounds : ndarray of int32, shape (N, 4)
        First row, first column, last row + 1, last column + 1 [px].
    objects : ndarray of int32, shape (Y + 2, X + 2)
        Object number 1 … N of every pixel, 0 for background, inside a frame of -1.
    surround : ndarray of uint8, shape (P,)
        One bit per 8-neighbor, set where it is of the same object: clockwise from 1 above to 128 above on the left.
    levels : float
        Largest value of an integer image; 0 for a float image.
    shared : Shared
        For what depends on the image alone.
    """

    def __init__(self, labels, image, shared=None):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"A label image holds integers, found {labels.dtype}.")
        if labels.shape != image.shape[1:]:
            raise ValueError(f"Labels of shape {labels.shape} do not fit an image of shape {image.shape[1:]}.")
        self.labels, self.objects = _number_objects(labels)
        self.offsets, self.rows, self.columns, self.bounds, self.surround = _list_pixels(self.objects, len(self.labels))
        self.levels = LEVELS.get(image.dtype, 0.0)
        self.shared = Shared() if shared is None else shared
        self._image = image

    @functools.cached_property
    def pixels(self):
        """Intensities of the listed pixels as the image holds them: ndarray of its type, shape (C, P)."""
        return _take_pixels(self._image, self.runs, self.rows, self.columns)

    @functools.cached_property
    def values(self):
        """Intensities of the listed pixels, scaled to 0 … 1: ndarray of float64, shape (C, P)."""
        return self.pixels / self.levels if self.levels else self.pixels

    @functools.cached_property
    def sums(self):
        """Sums and extremes of the objects' intensities: `Sums`."""
        shape = len(self.pixels), len(self.labels)
        sums = Sums(*np.empty((4, *shape)), np.empty(shape, np.int64))
        for pixels, *out in zip(self.pixels, *sums, strict=True):
            _sum_up(pixels, self.levels or 1.0, self.offsets, *out)
        return sums

    @functools.cached_property
    def areas(self):
        """Pixels per object: ndarray of int64, shape (N,)."""
        return np.diff(self.offsets)

    @functools.cached_property
    def runs(self):
        """Where the runs of pixels side by side in a row begin in the list, and its end: ndarray of int64, shape (R + 1,)."""
        return _list_runs(self.offsets, self.rows, self.columns)

    @functools.cached_property
    def depths(self):
        """Squared distance to the nearest pixel in the image outside of the object [px²]: ndarray of int32, shape (P,).

        2**30 where there is none.
        """
        height, width = self._image.shape[1:]
        return _measure_depths(self.offsets, self.runs, self.rows, self.columns, self.bounds, height, width)

    @functools.cached_property
    def centers(self):
        """Mean row and column of every object [px]: ndarray of float64, shape (N, 2)."""
        return self.bounds[:, :2] + self.middles

    @functools.cached_property
    def middles(self):
        """Mean row and column of every object in its bounding box [px]: ndarray of float64, shape (N, 2)."""
        return _mean_positions(self.offsets, self.rows, self.columns, self.bounds)

    @property
    def axes(self):
        """Per axis the pixels' positions and where the bounding boxes begin: pairs of ndarrays of int32, shapes (P,), (N,)."""
        return [(self.rows, self.bounds[:, 0].copy()), (self.columns, self.bounds[:, 1].copy())]

    @functools.cached_property
    def masses(self):
        """Center of mass of every object in its bounding box, per channel [px]: ndarray of float64, shape (C, N, axes).

        NaN for an object without any intensity.
        """
        axes = self.axes
        masses = np.empty((len(self.pixels), len(self.labels), len(axes)))
        for c, pixels in enumerate(self.pixels):
            for axis, (positions, firsts) in enumerate(axes):
                masses[c, :, axis] = _find_masses(pixels, self.offsets, positions, firsts)
        return masses


def check_image(image, channels):
    """Return the image as uint8, uint16 or float64 after checking type, shape, channel names and finiteness."""
    image = np.asarray(image)
    if image.dtype.kind == "f":
        image = image.astype(np.float64, copy=False)
    elif image.dtype.newbyteorder("=") in LEVELS:
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
    else:
        raise TypeError(f"An image holds uint8, uint16 or floats in 0 … 1, found {image.dtype}.")
    if image.ndim != 3 or len(image) != len(channels):
        raise ValueError(f"Expected an image of shape ({len(channels)}, Y, X) for {channels}, found {image.shape}.")
    if len(set(channels)) != len(channels):
        raise ValueError(f"Channel names occur twice: {channels}.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError("The image holds NaN or infinite intensities.")
    return image


def occurring_labels(labels):
    """List the labels that occur in a label image, ascending, without 0: ndarray of int64."""
    if labels.size and labels.max() > _LARGEST_TABLE:
        values = np.unique(labels)
        return values[values != 0].astype(np.int64)
    occurs = np.zeros(int(labels.max(initial=0)) + 1, bool)
    _mark(labels.ravel().astype(labels.dtype.newbyteorder("="), copy=False), occurs)
    occurs[0] = False
    return np.flatnonzero(occurs)


def _number_objects(labels):
    """Return the labels that occur and the framed image of object numbers."""
    objects = np.full((labels.shape[0] + 2, labels.shape[1] + 2), -1, np.int32)
    lowest, highest = labels.min(initial=0), labels.max(initial=0)
    if lowest < 0 or highest > _LARGEST_LABEL:
        found = lowest if lowest < 0 else highest
        raise ValueError(f"Labels are 0 (background) or positive, up to {_LARGEST_LABEL}, found {found}.")
    values = occurring_labels(labels)
    if len(values) and values[-1] > _LARGEST_TABLE:
        numbers = np.where(labels == 0, 0, np.searchsorted(values, labels) + 1)
    else:
        table = np.zeros(int(values[-1]) + 1 if len(values) else 1, np.int32)
        table[values] = np.arange(1, len(values) + 1)
        _look_up(labels.astype(labels.dtype.newbyteorder("="), copy=False), table, objects)
        return values, objects
    objects[1:-1, 1:-1] = numbers
    return values, objects


@kernel
def _mark(labels, occurs):
    """Note which labels occur."""
    for label in labels:
        occurs[label] = True


@kernel
def _look_up(labels, table, objects):
    """Put the table's entries of all labels into the frame."""
    height, width = labels.shape
    for row in range(height):
        for column in range(width):
            objects[row + 1, column + 1] = table[labels[row, column]]


@kernel
def _list_pixels(objects, count):
    """Sort the object pixels by object (counting sort) and note bounds and surroundings on the way."""
    height, width = objects.shape
    offsets = np.zeros(count + 1, np.int64)
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            if objects[row, column] > 0:
                offsets[objects[row, column]] += 1
    for i in range(count):
        offsets[i + 1] += offsets[i]
    following = offsets[:-1].copy()
    rows = np.empty(offsets[count], np.int32)
    columns = np.empty(offsets[count], np.int32)
    surround = np.empty(offsets[count], np.uint8)
    bounds = np.zeros((count, 4), np.int32)
    bounds[:, :2] = max(height, width)
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            number = objects[row, column]
            if number <= 0:
                continue
            i = number - 1
            k = following[i]
            following[i] += 1
            rows[k] = row - 1
            columns[k] = column - 1
            bounds[i, 0] = min(bounds[i, 0], row - 1)
            bounds[i, 1] = min(bounds[i, 1], column - 1)
            bounds[i, 2] = max(bounds[i, 2], row)
            bounds[i, 3] = max(bounds[i, 3], column)
            code = 0
            code |= 1 * (objects[row - 1, column] == number)
            code |= 2 * (objects[row - 1, column + 1] == number)
            code |= 4 * (objects[row, column + 1] == number)
            code |= 8 * (objects[row + 1, column + 1] == number)
            code |= 16 * (objects[row + 1, column] == number)
            code |= 32 * (objects[row + 1, column - 1] == number)
            code |= 64 * (objects[row, column - 1] == number)
            code |= 128 * (objects[row - 1, column - 1] == number)
            surround[k] = code
    return offsets, rows, columns, bounds, surround


@kernel
def _take_pixels(image, runs, rows, columns):
    """Copy the listed pixels, run by run."""
    pixels = np.empty((len(image), len(rows)), image.dtype)
    for c in range(len(image)):
        for j in range(len(runs) - 1):
            first, n = runs[j], runs[j + 1] - runs[j]
            row, column = rows[first], columns[first]
            line, here = image[c, row, column : column + n], pixels[c, first : first + n]
            for k in range(n):
                here[k] = line[k]
    return pixels


@kernel
def _sum_up(pixels, levels, offsets, total, deviation, low, high, brightest):
    """Fill in one channel's `Sums`: of integers in integers, so exactly, loop by loop what a processor can do in parallel."""
    near = np.zeros(1, pixels.dtype)
    zero = near[0] + 0  # int64 for integers, else float64
    for i in range(len(offsets) - 1):
        values = pixels[offsets[i] : offsets[i + 1]]
        n, whole, squares = len(values), zero, zero
        lowest = highest = values[0]
        for k in range(n):
            whole += values[k]
            lowest, highest = min(lowest, values[k]), max(highest, values[k])
        # Around the mean, of integers around one next to it.
        near[0] = whole / n
        center = near[0] + 0
        for k in range(n):
            squares += (values[k] - center) * (values[k] - center)
        brightest[i] = offsets[i]
        while pixels[brightest[i]] != highest:
            brightest[i] += 1
        mean = whole / n
        total[i], low[i], high[i] = whole / levels, lowest / levels, highest / levels
        deviation[i] = np.sqrt(max(squares / n - (mean - center) ** 2, 0.0)) / levels


@kernel
def _find_masses(pixels, offsets, positions, firsts):
    """Mean position along one axis from the bounding box on, weighted by intensity; integers are summed as integers."""
    zero = np.zeros(1, pixels.dtype)[0] + 0
    masses = np.empty(len(firsts))
    for i in range(len(firsts)):
        values, places, first = pixels[offsets[i] : offsets[i + 1]], positions[offsets[i] : offsets[i + 1]], firsts[i]
        whole, moment = zero, zero
        for k in range(len(values)):
            whole += values[k]
            moment += values[k] * (places[k] - first)
        masses[i] = moment / whole
    return masses


@kernel
def _mean_positions(offsets, rows, columns, bounds):
    """Mean row and column; summed as integers from the bounding box on, where a shifted object has the same ones."""
    count = len(offsets) - 1
    middles = np.empty((count, 2))
    for i in range(count):
        row_sum, column_sum = 0, 0
        for k in range(offsets[i], offsets[i + 1]):
            row_sum += rows[k] - bounds[i, 0]
            column_sum += columns[k] - bounds[i, 1]
        area = offsets[i + 1] - offsets[i]
        middles[i, 0], middles[i, 1] = row_sum / area, column_sum / area
    return middles


@kernel
def _list_runs(offsets, rows, columns):
    """Find where a row, a run or an object begins."""
    runs = np.empty(len(rows) + 1, np.int64)
    n, i = 0, 0
    for k in range(len(rows)):
        begins = k == offsets[i]
        if begins or rows[k] != rows[k - 1] or columns[k] != columns[k - 1] + 1:
            runs[n] = k
            n += 1
        i += begins
    runs[n] = len(rows)
    return runs[: n + 1].copy()


@kernel
def _measure_depths(offsets, runs, rows, columns, bounds, height, width):
    """Squared distances: along the columns first, then the nearest column's along the rows, many pixels at a time."""
    farthest = 1 << 15
    tall, wide = 0, 0
    for i in range(len(bounds)):
        tall, wide = max(tall, bounds[i, 2] - bounds[i, 0]), max(wide, bounds[i, 3] - bounds[i, 1])
    # Of one object at a time, in a frame; 0 outside.
    vertical = np.zeros((tall + 2, wide + 2), np.int32)
    depths, squares = np.empty(len(rows), np.int32), np.empty(3 * wide, np.int32)
    first_run = 0
    for i in range(len(bounds)):
        top, left = bounds[i, 0] - 1, bounds[i, 1] - 1
        last_run = first_run
        while runs[last_run] < offsets[i + 1]:
            first, n = runs[last_run], runs[last_run + 1] - runs[last_run]
            row, column = rows[first] - top, columns[first] - left
            here, above = vertical[row, column:][:n], vertical[row - 1, column:][:n]
            for k in range(n):
                here[k] = min(np.int32(above[k] + 1), farthest) if rows[first] > 0 else farthest
            last_run += 1
        for j in range(last_run - 1, first_run - 1, -1):
            first, n = runs[j], runs[j + 1] - runs[j]
            row, column = rows[first] - top, columns[first] - left
            if rows[first] < height - 1:
                here, below = vertical[row, column:][:n], vertical[row + 1, column:][:n]
                for k in range(n):
                    here[k] = min(here[k], np.int32(below[k] + 1))
        for j in range(first_run, last_run):
            first, n = runs[j], runs[j + 1] - runs[j]
            here = vertical[rows[first] - top, columns[first] - left :][:n]
            for k in range(n):
                squares[n + k] = np.int32(here[k] * here[k])
            here[:] = 0
            _search_row(squares[: 3 * n], columns[first] > 0, columns[first] + n < width, depths[first:][:n])
        first_run = last_run
    return depths


@kernel
def _search_row(squares, left_edge, right_edge, depths):
    """Fill in a run's squared distances, given those along the columns and which ends of the run are edges.

    `squares` has room for the run's length on both sides.
    """
    n = len(depths)
    for k in range(n):
        depth = np.int64(squares[n + k])
        depth = min(depth, (k + 1) ** 2) if left_edge else depth
        depths[k] = min(depth, (n - k) ** 2) if right_edge else depth
    if not left_edge:
        squares[:n] = _NOWHERE
    if not right_edge:
        squares[2 * n :] = _NOWHERE
    step, deepest = 1, depths.max()
    while step < n and step * step < deepest:
        # Closer than the step to an edge nothing can change.
        low, high = step if left_edge else 0, n - step if right_edge else n
        if low >= high:
            break
        deepest = _lower(depths[low:high], squares[n + low - step :], squares[n + low + step :], np.int32(step * step))
        step += 1


@kernel
def _lower(depths, before, after, square):
    """Replace what is larger than the smaller of the others plus a square; return the largest."""
    largest = np.int32(0)
    for k in range(len(depths)):
        depths[k] = min(depths[k], np.int32(min(before[k], after[k]) + square))
        largest = max(largest, depths[k])
    return largest
