"""Which cells of one segmentation are those of another: by where their nuclei lie."""

import numpy as np


def match_cells(points, centers, radii):
    """Find cells again after a segmentation was redone.

    A cell is found where one nucleus lies within half of its radius of where it was, and no other of the points is nearer
    to that nucleus. A nucleus that was split or merged is not found: the halves of a disk lie 0.6 of their radius from its center.

    Parameters
    ----------
    points : array of float, shape (M, 2)
        Row and column of the cells that are looked for [px], each once.
    centers : array of float, shape (N, 2)
        Of the nuclei that there are now [px].
    radii : array of float, shape (N,)
        Of circles as large as these [px].

    Returns
    -------
    ndarray of int64, shape (M,)
        Position of the cell among those that there are now; -1: it is gone.

    Examples
    --------
    >>> match_cells([[10, 10], [40, 40]], [[11, 10], [60, 60]], [8, 8])
    array([ 0, -1])
    """
    points, centers = np.reshape(points, (-1, 2)).astype(float), np.reshape(centers, (-1, 2)).astype(float)
    found = np.full(len(points), -1, np.int64)
    if not len(centers):
        return found
    distance = np.sqrt(((points[:, None] - centers[None]) ** 2).sum(axis=2))
    for i, nearest in enumerate(distance.argmin(axis=1)):
        if distance[i, nearest] <= radii[nearest] / 2 and distance[:, nearest].argmin() == i:
            found[i] = nearest
    return found
