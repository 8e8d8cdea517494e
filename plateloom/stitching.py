"""Fields of a well side by side in one image: where each lies, and which of them a pixel belongs to.

Fields are moved by whole pixels, never resampled. Where several cover a pixel, it belongs to the one whose center is
nearest, and of equally near ones to the first: so a field's dim and distorted border yields to its neighbor's middle.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """Equally large fields on one image.

    Attributes
    ----------
    origins : tuple of (int, int)
        Row and column of each field's first pixel on the image [px].
    field_shape : tuple of int (Y, X)
        Of each field [px].

    Examples
    --------
    >>> mosaic = Mosaic(((0, 0), (0, 3)), (2, 4))
    >>> mosaic.shape
    (2, 7)
    >>> mosaic.owners((slice(0, 1), slice(0, 7)))
    array([[0, 0, 0, 0, 1, 1, 1]], dtype=int32)
    """

    origins: tuple
    field_shape: tuple

    @property
    def shape(self):
        """Y and X of the image [px]."""
        return tuple(max(origin[i] for origin in self.origins) + self.field_shape[i] for i in (0, 1))

    def owners(self, window):
        """Number of the field that each pixel of a window belongs to.

        Parameters
        ----------
        window : tuple of slice
            Rows and columns, both ends given [px].

        Returns
        -------
        ndarray of int32, shape of the window
            -1 where no field lies.
        """
        rows, columns = (np.arange(part.start, part.stop) for part in window)
        found = np.full((len(rows), len(columns)), -1, np.int32)
        nearest = np.full(found.shape, np.inf)
        for number, origin in self.covering(window):
            here = _overlap(window, origin, self.field_shape)[0]
            up, across = self._distances(origin, rows[here[0]], columns[here[1]])
            distance = up[:, None] + across
            closer = distance < nearest[here]
            found[here][closer] = number
            nearest[here][closer] = distance[closer]
        return found

    def owners_of(self, pixels):
        """Number of the field that each of some pixels belongs to.

        Parameters
        ----------
        pixels : ndarray of int, shape (N, 2)
            Rows and columns [px].

        Returns
        -------
        ndarray of int32, shape (N,)
            As `owners` has it.
        """
        rows, columns = np.asarray(pixels, int).reshape(-1, 2).T
        found, nearest = np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
        height, width = self.field_shape
        for number, (top, left) in enumerate(self.origins):
            distance = np.sum(self._distances((top, left), rows, columns), axis=0)
            inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
            closer = inside & (distance < nearest)
            found[closer], nearest[closer] = number, distance[closer]
        return found

    def _distances(self, origin, rows, columns):
        """Squared distances from a field's center, along y and along x, in half pixels: whole numbers, so ties are ties."""
        places = zip((rows, columns), origin, self.field_shape, strict=True)
        return [(2 * (place - start) - size + 1).astype(np.float64) ** 2 for place, start, size in places]

    def covering(self, window):
        """Numbers and origins of the fields that touch a window."""
        for number, origin in enumerate(self.origins):
            if _overlap(window, origin, self.field_shape) is not None:
                yield number, origin

    def assemble(self, window, read, dtype):
        """Pixels of a window of the image.

        Parameters
        ----------
        window : tuple of slice
            Rows and columns, both ends given [px].
        read : callable(int, tuple of slice) -> ndarray, shape (…, rows, columns)
            Pixels of a window of one field; leading axes are the same for all.
        dtype : dtype

        Returns
        -------
        ndarray, shape (…, rows, columns)
            0 where no field lies.
        """
        size = tuple(part.stop - part.start for part in window)
        owners, image = self.owners(window), None
        for number, origin in self.covering(window):
            here, there = _overlap(window, origin, self.field_shape)
            mine = owners[here] == number
            if not mine.any():
                continue
            pixels = read(number, there)
            if image is None:
                image = np.zeros((*pixels.shape[:-2], *size), dtype)
            image[(..., *here)] = np.where(mine, pixels, image[(..., *here)])
        return np.zeros(size, dtype) if image is None else image


def place_fields(centers_um, pixel_size_um, field_shape):
    """Lay fields out by their positions.

    Parameters
    ----------
    centers_um : sequence of (float, float)
        y, growing as rows do, and x of each field's center, relative to any point [µm].
    pixel_size_um : float
        [µm/px].
    field_shape : tuple of int (Y, X)
        [px].

    Returns
    -------
    Mosaic
        Its image begins with the topmost and the leftmost field.

    Examples
    --------
    >>> place_fields([(0.0, 0.0), (0.0, 4.9), (-5.1, 0.0)], 0.5, (10, 10)).origins
    ((10, 0), (10, 10), (0, 0))
    """
    centers = np.asarray(centers_um, np.float64) / pixel_size_um
    origins = np.rint(centers - centers.min(axis=0)).astype(int)
    return Mosaic(tuple((int(y), int(x)) for y, x in origins), tuple(field_shape))


def _overlap(window, origin, field_shape):
    """Where a field and a window meet: slices into the window, slices into the field; None where they do not."""
    here, there = [], []
    for part, start, size in zip(window, origin, field_shape, strict=True):
        first, last = max(part.start, start), min(part.stop, start + size)
        if first >= last:
            return None
        here.append(slice(first - part.start, last - part.start))
        there.append(slice(first - start, last - start))
    return tuple(here), tuple(there)
