"""Compare two label images object by object."""

import numpy as np


def match_objects(labels, truth, *, min_iou=0.5):
    """Count the objects that two label images agree on.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X)
        Objects found; 0 is background.
    truth : ndarray of int, shape (Y, X)
        Objects that are there; 0 is background.
    min_iou : float in [0.5, 1]
        A found and a true object are the same from this intersection over union on. Above 0.5 no object can match two.

    Returns
    -------
    tp, fp, fn : int
        True positives (objects that match), false positives (found only) and false negatives (true only).

    Examples
    --------
    >>> match_objects(np.array([[1, 1, 0, 2]]), np.array([[7, 7, 7, 0]]))
    (1, 1, 0)
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.shape != truth.shape:
        raise ValueError(f"The label images have different shapes, {labels.shape} and {truth.shape}.")
    if not 0.5 <= min_iou <= 1:
        raise ValueError(f"min_iou is {min_iou}; below 0.5 an object could match several, above 1 none.")
    found, found_at = np.unique(labels, return_inverse=True)
    true, true_at = np.unique(truth, return_inverse=True)
    shared = np.bincount(
        found_at.ravel().astype(np.int64) * len(true) + true_at.ravel(), minlength=len(found) * len(true)
    ).reshape(len(found), len(true))
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    same = (shared >= min_iou * union) & (shared > 0) & (found != 0)[:, None] & (true != 0)[None, :]
    tp = int(min(same.any(axis=1).sum(), same.any(axis=0).sum()))
    return tp, int((found != 0).sum()) - tp, int((true != 0).sum()) - tp
