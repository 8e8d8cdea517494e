"""Splits by group, the only ones that there are: cells of a well share its staining, its density and its neighbors."""

import warnings

import numpy as np

from plateloom.errors import LabelError

SCHEMES = {"well": "wells", "plate": "plates", "batch": "batches"}
MOST_GROUPS = 20  # beyond this, leaving out one plate or batch at a time costs more than it tells
ATTEMPTS = 20


def check_groups(groups, *, folds, scheme, classes=None):
    """Refuse groups that no split can test, whatever the cells in them are like.

    Parameters
    ----------
    groups : array of str, shape (N,)
        As of `split_groups`.
    folds : int
    scheme : {"well", "plate", "batch"}
    classes : array of str, shape (N,), optional
        Without them only the number of groups is looked at, as of numbers.

    Raises
    ------
    LabelError
        If there are fewer groups than are held out, or a class is in fewer than two.
    """
    if scheme not in SCHEMES:
        raise ValueError(
            f"Unknown scheme {scheme!r}. Expected one of {', '.join(SCHEMES)}; a split by cell is not offered."
        )
    groups, units = np.asarray(groups), SCHEMES[scheme]
    n_groups = len(np.unique(groups))
    names = [] if classes is None else np.unique(classes)
    counts = {str(name): len(np.unique(groups[np.asarray(classes) == name])) for name in names}
    if few := [f"{name!r} in {count}" for name, count in counts.items() if count < 2]:
        raise LabelError(
            f"Classes in fewer than 2 {units}: {', '.join(few)}. "
            f"What is learned there cannot be tested elsewhere; label cells of other {units}."
        )
    if n_groups < 2:
        raise LabelError(f"{n_groups} {scheme} cannot be split. Label cells of other {units}.")
    if folds < 2 or (n_groups < folds and (scheme == "well" or n_groups > MOST_GROUPS)):
        raise LabelError(
            f"{n_groups} {units} for {folds} folds. Use 2 to {n_groups} folds, or label cells of more {units}."
        )


def split_groups(truth, groups, *, folds, scheme="well", seed=0):
    """Deal groups into folds, each of which is held out once.

    Parameters
    ----------
    truth : array, shape (N,)
        Classes as int 0 … K - 1: every class is in every training part. Or numbers as float.
    groups : array of str, shape (N,)
        Group of each cell; a well with its plate in front (`P1/A01`).
    folds : int
        Parts that wells are dealt into; also plates and batches, of which there are more than 20: else each is left out in turn.
    scheme : {"well", "plate", "batch"}
        What a group is.
    seed : int

    Returns
    -------
    list of (ndarray of int64, ndarray of int64)
        Rows to train on, and rows to test on.

    Raises
    ------
    LabelError
        If there are fewer groups than folds, or no such split is found.

    Notes
    -----
    Classes are balanced over the folds plate by plate. Were they not, the wells of a plate that are left to learn from would
    be more of the class that its tested wells are not, and a method that only knows plates would be wrong more often than by chance.
    Of numbers, every fold gets low and high ones alike, for the same reason.
    """
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    check_groups(groups, folds=folds, scheme=scheme)
    truth, units = np.asarray(truth), SCHEMES[scheme]
    names, member = np.unique(groups, return_inverse=True)
    everything, n_groups = np.zeros((len(truth), 1)), len(names)
    n_classes = len(np.unique(truth)) if truth.dtype.kind == "i" else None
    if scheme != "well" and n_groups <= MOST_GROUPS:
        splits = list(LeaveOneGroupOut().split(everything, truth, member))
        if n_classes is None or all(len(np.unique(truth[train])) == n_classes for train, _ in splits):
            return splits
        raise LabelError(f"Without one of the {n_groups} {units} a class is missing. Label it in other {units}.")
    if n_classes is None:
        return _deal_by_mean(truth, member, folds, seed)
    plates = np.unique([name.rpartition("/")[0] for name in names], return_inverse=True)[1][member]
    strata = np.unique(plates * n_classes + truth, return_inverse=True)[1]
    strata = truth if np.bincount(strata).max() < folds else strata
    for attempt in range(ATTEMPTS):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + attempt)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class in y has only", category=UserWarning)
            splits = list(splitter.split(everything, strata, member))
        if all(len(test) and len(np.unique(truth[train])) == n_classes for train, test in splits):
            return splits
    raise LabelError(
        f"{n_groups} {units} cannot be dealt into {folds} folds so that the rest always holds every class. Use fewer."
    )


def _deal_by_mean(numbers, member, folds, seed):
    """Folds of groups, each of which has one of every `folds` groups that follow each other by their mean."""
    random = np.random.default_rng(seed)
    mean = np.bincount(member, numbers) / np.bincount(member)
    shuffled = random.permutation(len(mean))
    order = shuffled[np.argsort(mean[shuffled], kind="stable")]
    fold = np.empty(len(mean), int)
    for start in range(0, len(order), folds):
        own = order[start : start + folds]
        fold[own] = random.permutation(folds)[: len(own)]
    of_cell = fold[member]
    return [(np.flatnonzero(of_cell != number), np.flatnonzero(of_cell == number)) for number in range(folds)]
