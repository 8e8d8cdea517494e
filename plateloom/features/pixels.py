"""The pixels of a compartment's objects as one list, sorted by object: made once, read by all families."""

import functools

import numpy as np

from plateloom.features.compilation import kernel

# The largest intensity of the types that a microscope writes.
LEVELS = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}

# Above this a table from label to object would outgrow the image.
_LARGEST_TABLE = 1 << 24


class PixelIndex:
    """Where every object's pixels are.

    P pixels of N objects; the pixels of object `i` are ``offsets[i]:offsets[i + 1]``, in row-major order.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X)
        Label image; 0 is background.
    image : ndarray of uint8, uint16 or float64, shape (C, Y, X)
        Intensities, as `check_image` returns them.

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
    """

    def __init__(self, labels, image):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"A label image holds integers, found {labels.dtype}.")
        if labels.shape != image.shape[1:]:
            raise ValueError(f"Labels of shape {labels.shape} do not fit an image of shape {image.shape[1:]}.")
        self.labels, self.objects = _number_objects(labels)
        self.offsets, self.rows, self.columns, self.bounds, self.surround = _list_pixels(self.objects, len(self.labels))
        self.levels = LEVELS.get(image.dtype, 0.0)
        self._image = image

    @functools.cached_property
    def values(self):
        """Intensities of the listed pixels, scaled to 0 … 1: ndarray of float64, shape (C, P)."""
        channels, height, width = self._image.shape
        flat = self.rows.astype(np.int64) * width + self.columns
        values = np.take(self._image.reshape(channels, height * width), flat, axis=1)
        return values / self.levels if self.levels else values

    @functools.cached_property
    def areas(self):
        """Pixels per object: ndarray of int64, shape (N,)."""
        return np.diff(self.offsets)

    @functools.cached_property
    def centers(self):
        """Mean row and column of every object [px]: ndarray of float64, shape (N, 2)."""
        return _mean_positions(self.offsets, self.rows, self.columns, self.bounds)


def check_image(image, channels):
    """Return the image as uint8, uint16 or float64 after checking type, shape, channel names and finiteness."""
    image = np.asarray(image)
    if image.dtype.kind == "f":
        image = image.astype(np.float64, copy=False)
    elif image.dtype not in LEVELS:
        raise TypeError(f"An image holds uint8, uint16 or floats in 0 … 1, found {image.dtype}.")
    if image.ndim != 3 or len(image) != len(channels):
        raise ValueError(f"Expected an image of shape ({len(channels)}, Y, X) for {channels}, found {image.shape}.")
    if len(set(channels)) != len(channels):
        raise ValueError(f"Channel names occur twice: {channels}.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError("The image holds NaN or infinite intensities.")
    return image


def _number_objects(labels):
    """Return the labels that occur and the framed image of object numbers."""
    objects = np.full((labels.shape[0] + 2, labels.shape[1] + 2), -1, np.int32)
    if labels.size and labels.min() < 0:
        raise ValueError(f"Labels are 0 (background) or positive, found {labels.min()}.")
    if not labels.size or labels.max() <= _LARGEST_TABLE:
        occurs = np.zeros(int(labels.max(initial=0)) + 1, bool)
        occurs[labels.ravel()] = True
        occurs[0] = False
        values, numbers = np.flatnonzero(occurs), np.where(occurs, np.cumsum(occurs), 0).astype(np.int32)[labels]
    else:
        values, numbers = np.unique(labels, return_inverse=True)
        if values[0] != 0:
            values, numbers = np.insert(values, 0, 0), numbers + 1
        values = values[1:]
    objects[1:-1, 1:-1] = numbers.reshape(labels.shape)
    return values.astype(np.int64), objects


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
def _mean_positions(offsets, rows, columns, bounds):
    """Mean row and column; summed as integers from the bounding box on, so that a shifted object shifts exactly."""
    count = len(offsets) - 1
    centers = np.empty((count, 2))
    for i in range(count):
        row_sum, column_sum = 0, 0
        for k in range(offsets[i], offsets[i + 1]):
            row_sum += rows[k] - bounds[i, 0]
            column_sum += columns[k] - bounds[i, 1]
        area = offsets[i + 1] - offsets[i]
        centers[i, 0] = bounds[i, 0] + row_sum / area
        centers[i, 1] = bounds[i, 1] + column_sum / area
    return centers
