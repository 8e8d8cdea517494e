"""Numbers instead of classes (a dose, a count, a score): learned and tested with the same guards, whole groups held out."""

import numpy as np

from plateloom.classification import REGRESSORS
from plateloom.classification.fitting import fit_quietly, make_pipeline
from plateloom.classification.splits import split_groups
from plateloom.errors import LabelError
from plateloom.intervals import interval_of
from plateloom.registry import load_method

MOST_POINTS = 400


def evaluate_numbers(
    X,
    y,
    groups,
    *,
    method,
    params,
    folds=5,
    scheme="well",
    coverage=0.9,
    categories=None,
    wells=None,
    n_bootstrap=500,
    seed=0,
    kept=None,
):
    """Predict the numbers of each group from the others.

    Parameters
    ----------
    X : array of float, shape (N, F)
    y : array of float, shape (N,)
        The number that each cell, or its well, is labeled with.
    groups, params, folds, scheme, coverage, categories, wells, n_bootstrap, seed, kept
        As for `plateloom.classification.evaluation.evaluate`.
    method : str
        A name in `plateloom.classification.REGRESSORS`.

    Returns
    -------
    dict
        Plain numbers, lists and text (JSON), all of held-out groups: `scheme`, `method`, `n_cells`, `n_groups`, `r2` (1 minus the
        squared error over that of guessing the mean of the training cells) and `spearman` (over cells) with `_low` and `_high` (95 %,
        over resampled groups; None with fewer than 5), `group_r2`, `group_spearman` (of the groups' means), `mean_error` (absolute), `half_width`
        (a prediction is within it of the truth for `coverage` of the cells of a new group; None with too few groups),
        `folds` (rows of `fold`, `groups`, `n_train`, `n_test`, `r2`, `spearman`), `points` (rows of `group`, `truth`, `predicted`:
        means of up to 400 groups), `subgroups` (rows of `by`, `part`, `cells`, `groups` (wells), `mean_error`, and `bias`, the mean of
        predicted minus true over wells with its 95 % interval `low`, `high`) and `warnings`. NaN is None.

    Raises
    ------
    LabelError
        If the labels cannot support an honest test: no two different numbers, or fewer groups than folds.
    """
    X, y, groups = check_numbers(X, y, groups)
    names, member = np.unique(groups, return_inverse=True)
    module = load_method(REGRESSORS, method, "regression method")
    predicted, guessed = np.full(len(y), np.nan), np.full(len(y), np.nan)
    rows, notes = [], []
    for number, (train, test) in enumerate(split_groups(y, groups, folds=folds, scheme=scheme, seed=seed)):
        pipeline, found = fit_quietly(make_pipeline(module.build(params)), X[train], y[train])
        notes += found
        predicted[test], guessed[test] = pipeline.predict(X[test]), y[train].mean()
        row = {"fold": number, "groups": names[np.unique(member[test])].tolist()}
        row |= {"n_train": len(train), "n_test": len(test), "r2": _r2(y[test], predicted[test], guessed[test])}
        rows.append(row | {"spearman": _spearman(y[test], predicted[test])})
        if kept is not None:
            kept.append(pipeline)
    means = [np.bincount(member, values) / np.bincount(member) for values in (y, predicted, guessed)]
    resampled = _resample(y, predicted, guessed, member, n_bootstrap, seed)
    ends = {f"{name}_{end}": value for name in resampled for end, value in _ends(resampled[name], len(names))}
    points = [
        {"group": str(name), "truth": float(t), "predicted": float(p)}
        for name, t, p in zip(names, *means[:2], strict=True)
    ]
    return {
        "scheme": scheme,
        "method": method,
        "n_cells": len(y),
        "n_groups": len(names),
        "r2": _r2(y, predicted, guessed),
        "spearman": _spearman(y, predicted),
        **ends,
        "group_r2": _r2(*means),
        "group_spearman": _spearman(*means[:2]),
        "mean_error": float(np.mean(np.abs(y - predicted))),
        "half_width": _half_width(np.abs(y - predicted), member, coverage),
        "coverage": coverage,
        "folds": rows,
        "points": points[:: -(-len(points) // MOST_POINTS)],
        "subgroups": _subgroups(predicted - y, member if wells is None else wells, categories or {}, n_bootstrap, seed),
        "warnings": sorted(set(notes)),
    }


def _subgroups(errors, wells, categories, n, seed):
    """Rows of `subgroups`: a part whose bias does not hold 0 is predicted too high, or too low."""
    rows, random = [], np.random.default_rng(seed)
    for by, values in categories.items():
        values = np.asarray(values).astype(str)
        parts = sorted(set(values.tolist()) - {""})
        for part in parts if len(parts) > 1 else ():
            own = values == part
            member = np.unique(np.asarray(wells)[own], return_inverse=True)[1]
            means = np.bincount(member, errors[own]) / np.bincount(member)
            low, high = interval_of(random.choice(means, (n, len(means))).mean(axis=1), len(means))
            row = {"by": by, "part": part, "cells": int(own.sum()), "groups": len(means)}
            row |= {"mean_error": float(np.abs(errors[own]).mean()), "bias": float(means.mean())}
            rows.append(row | {"low": low, "high": high})
    return rows


def check_numbers(X, y, groups):
    """Check and convert cells that are labeled with numbers.

    Parameters
    ----------
    X : array of float, shape (N, F)
    y : array of float, shape (N,)
    groups : array of str, shape (N,)

    Returns
    -------
    X : ndarray of float64, shape (N, F)
        Infinity as NaN.
    y : ndarray of float64, shape (N,)
    groups : ndarray of str, shape (N,)

    Raises
    ------
    LabelError
        If a label is no finite number, a group is missing, or all numbers are the same.
    ValueError
        If the lengths differ.
    """
    X = np.asarray(X, dtype=float)
    if X.ndim != 2 or len(X) != len(y) or len(X) != len(groups):
        raise ValueError(
            f"Found {np.shape(X)} features, {len(y)} numbers, {len(groups)} groups. Expected one of each per cell."
        )
    try:
        numbers = np.array(np.asarray(y).tolist(), float)
    except ValueError as error:
        raise LabelError(f"A label is no number: {error}. Classes are learned with `target: class`.") from None
    if not np.isfinite(numbers).all():
        raise LabelError("Some labels are no finite number. Leave these cells out.")
    if any(value is None or value != value or value == "" for value in groups):
        raise LabelError("Some cells have no group. Leave them out.")
    if len(np.unique(numbers)) < 2:
        raise LabelError(f"All labels are the same number ({numbers[:1]}). At least 2 different ones are needed.")
    return np.where(np.isfinite(X), X, np.nan), numbers, np.asarray(groups).astype(str)


def _r2(truth, predicted, guessed):
    """1 - squared error / that of guessing; None where guessing is right."""
    wrong = ((truth - guessed) ** 2).sum()
    return float(1 - ((truth - predicted) ** 2).sum() / wrong) if wrong > 0 else None


def _spearman(truth, predicted):
    """Correlation of ranks; None where one is constant."""
    from scipy.stats import rankdata

    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return None
    return float(np.corrcoef(rankdata(truth), rankdata(predicted))[0, 1])


def resample_r2(wrong, guesses, member, *, n, seed):
    """R² over resampled groups, where it is known: of the cells' squared errors, those of guessing, and their groups.

    Parameters
    ----------
    wrong, guesses : array of float, shape (N,)
    member : array of int, shape (N,)
        Number of a cell's group.
    n, seed : int

    Returns
    -------
    ndarray of float64, shape (at most n,)
    """
    sums = np.stack([np.bincount(member, values) for values in (wrong, guesses)], axis=1)[np.unique(member)]
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=n) @ sums
    drawn = drawn[drawn[:, 1] > 0]
    return 1 - drawn[:, 0] / drawn[:, 1]


def _resample(truth, predicted, guessed, member, n, seed):
    """R2 and Spearman's correlation over resampled groups."""
    random, found = np.random.default_rng(seed), []
    order = np.argsort(member, kind="stable")
    cells = np.split(order, np.cumsum(np.bincount(member))[:-1])
    for _ in range(n):
        rows = np.concatenate([cells[group] for group in random.integers(len(cells), size=len(cells))])
        found.append(_spearman(truth[rows], predicted[rows]))
    return {
        "r2": resample_r2((truth - predicted) ** 2, (truth - guessed) ** 2, member, n=n, seed=seed),
        "spearman": np.array([value for value in found if value is not None]),
    }


def _ends(values, units):
    """The 95 % interval, named."""
    return zip(("low", "high"), interval_of(values, units), strict=True)


def _half_width(error, member, coverage):
    """Error that `coverage` of the cells of a new group stay below, each group counting the same; None with too few groups."""
    counts = np.bincount(member)
    order = np.argsort(error, kind="stable")
    reached = np.cumsum((1 / ((len(counts) + 1) * counts))[member][order])
    enough = np.flatnonzero(reached >= coverage - 1e-12)
    return float(error[order][enough[0]]) if len(enough) else None
