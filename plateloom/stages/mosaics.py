"""Cells of stitched wells: which field of the source each lies on."""

import numpy as np

from plateloom.stages.illumination import mosaic_of
from plateloom.store import plate as store

STRIP_PX = 512  # of rows that are in memory at a time, with some fifty bytes for each labeled pixel


def find_centers(path, made):
    """Find the nuclei of an image: `values` and `centers` of `measure_nuclei`."""
    return measure_nuclei(path, made)[:2]


def measure_nuclei(path, made):
    """Find the nuclei of an image, and how large they are.

    Parameters
    ----------
    path : path
        Of the image.
    made : str
        Fingerprint that its labels must have.

    Returns
    -------
    values : ndarray of uint32, shape (N,)
        Labels.
    centers : ndarray of float64, shape (N, 2)
        Row and column [px].
    areas : ndarray of float64, shape (N,)
        [px²]; where z planes are kept, as seen from above.
    """
    strips, height = [], store.image_shape(path)[-2]
    for top in range(0, max(height, 1), STRIP_PX):
        labels = store.read_labels(path, "Nuclei", made=made, window=(slice(top, top + STRIP_PX), slice(None)))
        *planes, rows, columns = inside = np.nonzero(labels)
        values, width = labels[inside], labels.shape[-1]
        if planes:  # what is seen of each from above
            seen = np.unique((values.astype(np.int64) * len(labels[0]) + rows) * width + columns)
            rows, columns = np.divmod(seen, width)
            values, rows = np.divmod(rows, len(labels[0]))
        values, place = np.unique(values, return_inverse=True)
        sums = [np.bincount(place, weights, len(values)) for weights in (None, rows + top, columns)]
        strips.append((values, *sums))
    values, *sums = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    values, place = np.unique(values, return_inverse=True)
    areas, *totals = (np.bincount(place, some, len(values)) for some in sums)
    return values, np.column_stack(totals) / areas[:, None], areas


def source_fields(path, field, centers):
    """Say which field of the source each cell lies on.

    Parameters
    ----------
    path : path
        Of the image.
    field : int
        Number of the image.
    centers : ndarray of float64, shape (N, 2)
        Row and column of the cells [px].

    Returns
    -------
    ndarray of int64, shape (N,)
        The image's own number, unless it was stitched; 0 where none of its fields lies.
    """
    found = mosaic_of(path)
    if found is None:
        return np.full(len(centers), field, np.int64)
    mosaic, numbers = found
    return np.array([*numbers, 0], np.int64)[mosaic.owners_of(np.floor(centers + 0.5).astype(int))]
