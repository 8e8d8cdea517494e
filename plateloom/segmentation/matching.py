"""Compare two label images object by object."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Overlaps:
    """Which objects of two label images share pixels, and how many; background is no object.

    Attributes
    ----------
    found_px : ndarray of int64, shape (F,)
        Area of every object found [px], in the order of their labels.
    true_px : ndarray of int64, shape (T,)
        Area of every true object [px].
    found : ndarray of int64, shape (P,)
        Of each pair that shares a pixel, the place of the object found in `found_px`.
    true : ndarray of int64, shape (P,)
        The place of the true object in `true_px`.
    shared_px : ndarray of int64, shape (P,)
        What they share [px].
    """

    found_px: np.ndarray
    true_px: np.ndarray
    found: np.ndarray
    true: np.ndarray
    shared_px: np.ndarray


def pair_objects(labels, truth):
    """List the pairs of objects of two label images that overlap.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X), or with T and Z before
        Objects found; 0 is background.
    truth : ndarray of int, same shape
        Objects that are there; 0 is background.

    Returns
    -------
    Overlaps
        Its size grows with the objects, not with their square.

    Raises
    ------
    ValueError
        If the shapes differ, or labels are negative or no integers.

    Examples
    --------
    >>> pair_objects(np.array([[1, 1, 0, 2]]), np.array([[7, 7, 7, 0]])).shared_px
    array([2])
    """
    labels, truth = _checked(labels, "labels"), _checked(truth, "truth")
    if labels.shape != truth.shape:
        raise ValueError(
            f"The label images have different shapes, {labels.shape} and {truth.shape}; expected one pixel grid."
        )
    found_px, found_at = _number(labels)
    true_px, true_at = _number(truth)
    both = (found_at > 0) & (true_at > 0)
    pairs = found_at[both] * len(true_px) + true_at[both]
    # A table of all pairs where it is no larger than the image, else a list of those that there are.
    if len(found_px) * len(true_px) <= max(labels.size, 1):
        shared = np.bincount(pairs)
        pairs = np.flatnonzero(shared)
        shared = shared[pairs]
    else:
        pairs, shared = np.unique(pairs, return_counts=True)
    found, true = np.divmod(pairs, len(true_px))
    return Overlaps(found_px[1:], true_px[1:], found - 1, true - 1, shared)


def count_matches(overlaps, min_iou):
    """Number of pairs, one to one, whose intersection over union reaches a threshold.

    Parameters
    ----------
    overlaps : Overlaps
    min_iou : float in [0.5, 1]
        Taken as the decimal number that it is written as: 11 of 20 pixels reach 0.55.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the threshold lies outside its range.

    Notes
    -----
    Above 0.5 no object is in two pairs. At just 0.5 it can be in two, if it is the sum of two objects of one size.
    These are then in no other pair, so one of the two pairs counts.
    """
    if not 0.5 <= min_iou <= 1:
        raise ValueError(f"min_iou is {min_iou}; below 0.5 an object could match several, above 1 none.")
    least = Fraction(float(min_iou)).limit_denominator(1_000_000)
    union = overlaps.found_px[overlaps.found] + overlaps.true_px[overlaps.true] - overlaps.shared_px
    same = overlaps.shared_px * least.denominator >= union * least.numerator
    # Stars of one object and its one or two partners: a star of n pairs has n + 1 objects, and counts once.
    return len(np.unique(overlaps.found[same])) + len(np.unique(overlaps.true[same])) - int(same.sum())


def match_objects(labels, truth, *, min_iou=0.5):
    """Count the objects that two label images agree on.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X), or with T and Z before
        Objects found; 0 is background.
    truth : ndarray of int, same shape
        Objects that are there; 0 is background.
    min_iou : float in [0.5, 1]
        A found and a true object are the same from this intersection over union on. Above 0.5 no object can match two.

    Returns
    -------
    tp, fp, fn : int
        True positives (objects that match), false positives (found only) and false negatives (true only).

    Raises
    ------
    ValueError
        See `pair_objects` and `count_matches`.

    Examples
    --------
    >>> match_objects(np.array([[1, 1, 0, 2]]), np.array([[7, 7, 7, 0]]))
    (1, 1, 0)
    """
    overlaps = pair_objects(labels, truth)
    tp = count_matches(overlaps, min_iou)
    return tp, len(overlaps.found_px) - tp, len(overlaps.true_px) - tp


def _checked(labels, name):
    """A label image as an array, refused where it is none."""
    labels = np.asarray(labels)
    if labels.dtype == bool:
        raise ValueError(f"The {name} are bool, a mask; expected integers, one number per object and 0 for background.")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"The {name} are {labels.dtype}; expected integers, one number per object.")
    if labels.dtype.kind == "i" and labels.size and (lowest := labels.min()) < 0:
        raise ValueError(f"The {name} have the negative number {lowest}; expected 0 for background, else 1 or more.")
    return labels


def _number(labels):
    """Areas [px] of background and objects in the order of their labels, and of every pixel its place among them."""
    values = np.unique(labels)
    if not len(values) or values[0] != 0:
        values = np.concatenate([np.zeros(1, labels.dtype), values])
    at = np.searchsorted(values, labels.ravel())
    return np.bincount(at, minlength=len(values)), at
