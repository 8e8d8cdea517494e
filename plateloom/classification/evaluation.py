"""How well a method tells classes apart in wells or plates that it has not seen.

Cells of one well share its staining, its density and its neighbors. A split by cell finds the well again and calls it
the class: on a screen without any signal it reports 90 % and more. So every split here is by group.
"""

import warnings

import numpy as np

from plateloom.classification import METHODS
from plateloom.registry import load_method

SCHEMES = ("well", "plate")
MOST_PLATES = 20  # beyond this, leaving out one plate at a time costs more than it tells
ATTEMPTS = 20


def evaluate(X, y, groups, *, method, params, folds=5, scheme="well", n_bootstrap=500, seed=0, kept=None):
    """Predict each group from the others.

    Parameters
    ----------
    X : array of float, shape (N, F)
        Features of the labeled cells; NaN is imputed within each fold.
    y : array of str, shape (N,)
        Their classes.
    groups : array of str, shape (N,)
        The well of each cell including its plate (`P1/A01`) for scheme 'well', its plate for scheme 'plate'.
    method : str
        A name in `plateloom.classification.METHODS`.
    params : Params
        Of that method.
    folds : int
        Parts that the wells are dealt into.
    scheme : {"well", "plate"}
        'well': `folds` parts of wells, classes balanced over them. 'plate': each plate in turn (`folds` parts of
        plates if there are more than 20), the stricter test, which includes the effect of staining.
    n_bootstrap : int
        Resamples of the groups for the interval of the balanced accuracy; 0 for none.
    seed : int
        Of the split and of the bootstrap.
    kept : list, optional
        Takes the fitted pipeline of each fold, in the order of `folds` in what is returned.

    Returns
    -------
    dict
        Plain numbers, lists and text (JSON), all from predictions of cells of held-out groups, pooled over the folds:
        `scheme`, `method`, `n_cells`, `n_groups`, `chance` (1 / number of classes), `balanced_accuracy` with its 95 %
        interval `balanced_accuracy_low` and `_high`, `macro_f1`, `expected_calibration_error`, `classes`, `confusion`
        (rows: true, columns: predicted), `per_class` (rows of `class`, `precision`, `recall`, `f1`, `support`,
        `groups`), `folds` (rows of `fold`, `groups`, `n_train`, `n_test`, `balanced_accuracy`, `macro_f1`) and
        `warnings`. NaN is None.

    Raises
    ------
    ValueError
        If the labels cannot support an honest test: one class, a class in fewer than two groups, fewer groups than
        folds.
    """
    X, y, groups = check_labels(X, y, groups)
    if scheme not in SCHEMES:
        raise ValueError(
            f"Unknown scheme {scheme!r}. Expected one of {', '.join(SCHEMES)}; a split by cell is not offered."
        )
    classes, truth = np.unique(y, return_inverse=True)
    names, member = np.unique(groups, return_inverse=True)
    per_class = {str(name): len(np.unique(groups[y == name])) for name in classes}
    few = {name: count for name, count in per_class.items() if count < 2}
    if few:
        raise ValueError(
            f"Classes in fewer than 2 {scheme}s: {', '.join(f'{name!r} in {count}' for name, count in few.items())}. "
            f"What is learned there cannot be tested elsewhere; label cells of other {scheme}s."
        )
    module = load_method(METHODS, method, "classification method")
    probability = np.full((len(y), len(classes)), np.nan)
    rows, notes = [], []
    for number, (train, test) in enumerate(_splits(truth, member, len(names), folds, scheme, seed)):
        pipeline, found = fit_quietly(module.build(params), X[train], truth[train])
        notes += found
        probability[test] = pipeline.predict_proba(X[test])
        counts = _confusion(truth[test], probability[test].argmax(axis=1), len(classes))
        held = names[np.unique(member[test])].tolist()
        sizes = {"n_train": len(train), "n_test": len(test)}
        rows.append({"fold": number, "groups": held, **sizes, **_summary(counts)})
        if kept is not None:
            kept.append(pipeline)
    predicted = probability.argmax(axis=1)
    confusion = _confusion(truth, predicted, len(classes))
    precision, recall, f1 = _rates(confusion)
    support = confusion.sum(axis=1)
    table = [
        {
            "class": str(name),
            "precision": _plain(precision[c]),
            "recall": _plain(recall[c]),
            "f1": _plain(f1[c]),
            "support": int(support[c]),
            "groups": per_class[str(name)],
        }
        for c, name in enumerate(classes)
    ]
    low, high = _interval(truth, predicted, member, len(names), len(classes), n_bootstrap, seed)
    return {
        "scheme": scheme,
        "method": method,
        "n_cells": len(y),
        "n_groups": len(names),
        "chance": 1 / len(classes),
        **_summary(confusion),
        "balanced_accuracy_low": low,
        "balanced_accuracy_high": high,
        "expected_calibration_error": calibration_error(probability.max(axis=1), predicted == truth),
        "classes": [str(name) for name in classes],
        "confusion": confusion.tolist(),
        "per_class": table,
        "folds": rows,
        "warnings": sorted(set(notes)),
    }


def check_labels(X, y, groups):
    """Check and convert the labeled cells.

    Parameters
    ----------
    X : array of float, shape (N, F)
    y, groups : array of str, shape (N,)

    Returns
    -------
    X : ndarray of float64, shape (N, F)
        Infinity as NaN.
    y, groups : ndarray of str, shape (N,)

    Raises
    ------
    ValueError
        If the lengths differ, a class or group is missing, or there are fewer than two classes.
    """
    X = np.asarray(X, dtype=float)
    if X.ndim != 2 or len(X) != len(y) or len(X) != len(groups):
        raise ValueError(
            f"Found {np.shape(X)} features, {len(y)} classes, {len(groups)} groups. Expected one of each per cell."
        )
    for name, values in (("class", y), ("group", groups)):
        if any(value is None or value != value or value == "" for value in values):
            raise ValueError(f"Some cells have no {name}. Leave them out.")
    y, groups = np.asarray(y).astype(str), np.asarray(groups).astype(str)
    if len(np.unique(y)) < 2:
        raise ValueError(f"Found the classes {sorted(set(y.tolist()))}. At least 2 are needed.")
    return np.where(np.isfinite(X), X, np.nan), y, groups


def fit_quietly(pipeline, X, y, *, threads=1):
    """Fit a pipeline; a fit that did not converge is said, not printed.

    Parameters
    ----------
    pipeline : sklearn.pipeline.Pipeline
    X : ndarray of float64, shape (N, F)
    y : ndarray, shape (N,)
    threads : int
        For methods that can use them; of no influence on the result.

    Returns
    -------
    pipeline : sklearn.pipeline.Pipeline
        Fitted, to predict in one thread: with more, the order in which trees are summed would depend on the scheduler.
    notes : list of str
    """
    from sklearn.exceptions import ConvergenceWarning

    threaded = "n_jobs" in pipeline["estimator"].get_params() and pipeline["estimator"].n_jobs is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        if threaded and threads > 1:
            pipeline.set_params(estimator__n_jobs=threads)
        pipeline.fit(X, y)
        if threaded and threads > 1:
            pipeline.set_params(estimator__n_jobs=None)
    notes = []
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            notes.append(str(warning.message).splitlines()[0])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return pipeline, notes


def calibration_error(confidence, correct, bins=10):
    """Compute the expected calibration error: how far stated probabilities are from how often they are right.

    Parameters
    ----------
    confidence : array of float, shape (N,)
        Probability of the predicted class.
    correct : array of bool, shape (N,)
    bins : int

    Returns
    -------
    float in [0, 1]

    Examples
    --------
    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    place = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    error = 0.0
    for number in np.unique(place):
        chosen = place == number
        error += chosen.mean() * abs(np.mean(confidence[chosen]) - np.mean(correct[chosen]))
    return round(float(error), 12)


def _splits(truth, member, n_groups, folds, scheme, seed):
    """Pairs of train and test indices; every class is in every training part."""
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    everything = np.zeros((len(truth), 1))
    if scheme == "plate" and n_groups <= MOST_PLATES:
        return list(LeaveOneGroupOut().split(everything, truth, member))
    if folds < 2 or n_groups < folds:
        raise ValueError(
            f"{n_groups} {scheme}s for {folds} folds. Use 2 to {n_groups} folds, or label cells of more {scheme}s."
        )
    n_classes = truth.max() + 1
    for attempt in range(ATTEMPTS):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + attempt)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class in y has only", category=UserWarning)
            splits = list(splitter.split(everything, truth, member))
        if all(len(test) and len(np.unique(truth[train])) == n_classes for train, test in splits):
            return splits
    raise ValueError(
        f"{n_groups} {scheme}s cannot be dealt into {folds} folds so that the rest always holds every class. Use fewer."
    )


def _confusion(truth, predicted, n_classes):
    """Counts, rows true, columns predicted."""
    return np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def _rates(confusion):
    """Precision, recall and F1 per class; NaN where undefined."""
    hit, predicted, support = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-2), confusion.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / predicted, hit / support, 2 * hit / (predicted + support)


def _summary(confusion):
    """Balanced accuracy and macro F1 over the classes that are there."""
    _, recall, f1 = _rates(confusion)
    there = confusion.sum(axis=1) > 0
    return {"balanced_accuracy": float(recall[there].mean()), "macro_f1": float(f1[there].mean())}


def _interval(truth, predicted, member, n_groups, n_classes, n_bootstrap, seed):
    """95 % interval of the balanced accuracy over resampled groups; None without."""
    if not n_bootstrap:
        return None, None
    cells = member * n_classes**2 + truth * n_classes + predicted
    per_group = np.bincount(cells, minlength=n_groups * n_classes**2).reshape(n_groups, n_classes**2)
    drawn = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_bootstrap)
    recall = _rates((drawn @ per_group).reshape(-1, n_classes, n_classes))[1]
    accuracy = recall[np.isfinite(recall).all(axis=1)].mean(axis=1)
    if not len(accuracy):
        return None, None
    low, high = np.quantile(accuracy, [0.025, 0.975])
    return float(low), float(high)


def _plain(value):
    """A float, or None for NaN."""
    return float(value) if np.isfinite(value) else None
