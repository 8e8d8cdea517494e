"""How good a segmentation is: scores and kinds of errors, of one image and of many."""

import math
from dataclasses import dataclass

import numpy as np

from plateloom.segmentation.matching import count_matches, pair_objects

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


@dataclass(frozen=True)
class Comparison:
    """What two label images of one field have in common.

    Attributes
    ----------
    thresholds : tuple of float in [0.5, 1], length K
        Least intersection over union of a match.
    tp, fp, fn : tuple of int, length K
        True positives (matches, one to one), false positives (found only) and false negatives (true only).
    found, true : int
        Number of objects found, and of true objects.
    splits : int
        True objects in which two or more found objects lie.
    merges : int
        Found objects in which two or more true objects lie.
    missed : int
        True objects that lie in no found object, and in which none lies.
    spurious : int
        Found objects that lie in no true object, and in which none lies.
    """

    thresholds: tuple
    tp: tuple
    fp: tuple
    fn: tuple
    found: int
    true: int
    splits: int
    merges: int
    missed: int
    spurious: int


@dataclass(frozen=True)
class Summary:
    """Scores of many images, their objects counted together.

    Attributes
    ----------
    images : int
    thresholds, tp, fp, fn, found, true, splits, merges, missed, spurious
        As of `Comparison`, summed over the images.
    f1 : tuple of float in [0, 1], length K
        2 tp / (2 tp + fp + fn).
    ap : tuple of float in [0, 1], length K
        tp / (tp + fp + fn), the average precision of the Data Science Bowl 2018.
    precision : tuple of float in [0, 1], length K
        tp / (tp + fp).
    recall : tuple of float in [0, 1], length K
        tp / (tp + fn).
    mean_ap : float in [0, 1]
        Mean of `ap` over the thresholds.
    image_ap : float in [0, 1]
        Mean over the images of each one's `ap` at the first threshold; images without any object, found or true, have
        none and are left out.

    Every share is NaN where it is 0 / 0.
    """

    images: int
    thresholds: tuple
    tp: tuple
    fp: tuple
    fn: tuple
    found: int
    true: int
    splits: int
    merges: int
    missed: int
    spurious: int
    f1: tuple
    ap: tuple
    precision: tuple
    recall: tuple
    mean_ap: float
    image_ap: float


def compare_labels(labels, truth, *, thresholds=THRESHOLDS):
    """Compare the objects of a label image with the true ones.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X), or with T and Z before
        Objects found; 0 is background.
    truth : ndarray of int, same shape
        Objects that are there; 0 is background. The numbers of objects mean nothing in either.
    thresholds : sequence of float in [0.5, 1], length K
        A found and a true object are the same from this intersection over union on.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If the shapes differ, labels are negative or no integers, a threshold lies outside its range, or there is none.

    Notes
    -----
    An object *lies in* one of the other image if more than half of its pixels do. This is how Coelho et al. 2009
    (doi:10.1109/ISBI.2009.5193098) assign objects and count those split, merged, added and missing, but for two things:
    they assign to what shares most pixels, background included, which leaves ties open, and call an object missing of
    which the lesser part was found. A split or a merge counts also where one of the pieces matches.

    Caicedo et al. 2019 (doi:10.1002/cyto.a.23863) count objects that have an intersection over union above 0.1 with two
    or more others. That does not see pieces smaller than this, and takes neighbors for split and merged whose common
    border is drawn elsewhere.

    What matches at 0.5 or above is neither missed nor spurious. Exchange of the images exchanges fp and fn, splits and
    merges, missed and spurious.

    Examples
    --------
    >>> compared = compare_labels(np.array([[1, 1, 2, 0, 3]]), np.array([[7, 7, 7, 0, 0]]))
    >>> compared.tp[0], compared.fp[0], compared.fn[0], compared.splits, compared.spurious
    (1, 2, 0, 1, 1)
    """
    if not len(thresholds):
        raise ValueError("No thresholds; expected one or more in [0.5, 1].")
    overlaps = pair_objects(labels, truth)
    found, true = len(overlaps.found_px), len(overlaps.true_px)
    tp = tuple(count_matches(overlaps, least) for least in thresholds)
    found_inside = 2 * overlaps.shared_px > overlaps.found_px[overlaps.found]
    true_inside = 2 * overlaps.shared_px > overlaps.true_px[overlaps.true]
    related = found_inside | true_inside
    return Comparison(
        thresholds=tuple(float(least) for least in thresholds),
        tp=tp,
        fp=tuple(found - count for count in tp),
        fn=tuple(true - count for count in tp),
        found=found,
        true=true,
        splits=int((np.bincount(overlaps.true[found_inside]) > 1).sum()),
        merges=int((np.bincount(overlaps.found[true_inside]) > 1).sum()),
        missed=true - len(np.unique(overlaps.true[related])),
        spurious=found - len(np.unique(overlaps.found[related])),
    )


def pool(comparisons):
    """Score images together.

    Parameters
    ----------
    comparisons : iterable of Comparison
        Of the same thresholds.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If there are none, or their thresholds differ.

    Notes
    -----
    The Data Science Bowl 2018 (doi:10.1038/s41592-019-0612-7) took the mean over images and over thresholds up to 0.95,
    which a match had to exceed; here it has to reach them.

    Examples
    --------
    >>> whole, half = np.array([[1, 1, 0, 0]]), np.array([[1, 1, 2, 2]])
    >>> summary = pool([compare_labels(whole, whole), compare_labels(whole, half)])
    >>> summary.tp[0], summary.fn[0], round(summary.ap[0], 3), summary.image_ap
    (2, 1, 0.667, 0.75)
    """
    comparisons = list(comparisons)
    kinds = {one.thresholds for one in comparisons}
    if len(kinds) != 1:
        found = f"thresholds {sorted(kinds)}" if kinds else "nothing"
        raise ValueError(f"Found {found} to pool; expected comparisons of the same thresholds.")
    (thresholds,) = kinds
    tp, fp, fn = (
        tuple(sum(counts) for counts in zip(*(getattr(one, name) for one in comparisons), strict=True))
        for name in ("tp", "fp", "fn")
    )
    counts = list(zip(tp, fp, fn, strict=True))
    ap = tuple(share(t, t + p + n) for t, p, n in counts)
    of_images = [share(one.tp[0], one.tp[0] + one.fp[0] + one.fn[0]) for one in comparisons]
    of_images = [value for value in of_images if not math.isnan(value)]
    totals = ("found", "true", "splits", "merges", "missed", "spurious")
    return Summary(
        images=len(comparisons),
        thresholds=thresholds,
        tp=tp,
        fp=fp,
        fn=fn,
        **{name: sum(getattr(one, name) for one in comparisons) for name in totals},
        f1=tuple(share(2 * t, 2 * t + p + n) for t, p, n in counts),
        ap=ap,
        precision=tuple(share(t, t + p) for t, p, _ in counts),
        recall=tuple(share(t, t + n) for t, _, n in counts),
        mean_ap=share(sum(ap), len(ap)),
        image_ap=share(sum(of_images), len(of_images)),
    )


def share(part, whole):
    """A part of a whole; NaN where there is none.

    >>> share(1, 4), share(0, 0)
    (0.25, nan)
    """
    return part / whole if whole else math.nan
