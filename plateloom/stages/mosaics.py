"""Cells of stitched wells: which field of the source each lies on."""

import numpy as np
from scipy import ndimage

from plateloom.stages.illumination import mosaic_of
from plateloom.store import plate as store


def find_centers(path, made):
    """Find the nuclei of an image.

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
    """
    labels = store.read_labels(path, "Nuclei", made=made)
    values = np.unique(labels)
    values = values[values > 0]
    return values, np.reshape(ndimage.center_of_mass(labels > 0, labels, values), (-1, 2))


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
