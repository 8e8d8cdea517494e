"""Figures of a test: from the true and the predicted class of cells of held-out groups."""

import numpy as np

from plateloom.intervals import interval_of

RECALLS = np.round(np.arange(0.05, 1.001, 0.05), 2)  # at which a precision-recall curve is stated


def count_confusion(truth, predicted, n_classes):
    """Count cells by true and predicted class.

    Parameters
    ----------
    truth, predicted : array of int, shape (N,)
    n_classes : int

    Returns
    -------
    ndarray of int64, shape (K, K)
        Rows true, columns predicted.
    """
    return np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def rates_of(confusion):
    """Precision, recall and F1 of each class, shape (..., K) each; NaN where undefined.

    Parameters
    ----------
    confusion : array of int, shape (..., K, K)
    """
    hit, predicted, support = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-2), confusion.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / predicted, hit / support, 2 * hit / (predicted + support)


def summarize(confusion):
    """Balanced accuracy and macro F1 over the classes that are there, as a dict."""
    _, recall, f1 = rates_of(confusion)
    there = confusion.sum(axis=1) > 0
    return {"balanced_accuracy": float(recall[there].mean()), "macro_f1": float(f1[there].mean())}


def bootstrap_accuracy(truth, predicted, member, n_classes, *, n=500, seed=0):
    """Balanced accuracy over resampled groups; resamples that lack a class are left out.

    Parameters
    ----------
    truth, predicted, member : array of int, shape (N,)
        True and predicted class, and group of each cell.
    n_classes, n, seed : int

    Returns
    -------
    ndarray of float64, shape (at most n,)
    """
    _, member = np.unique(member, return_inverse=True)
    n_groups = member.max() + 1 if len(member) else 0
    if not n or not n_groups:
        return np.zeros(0)
    cells = member * n_classes**2 + truth * n_classes + predicted
    per_group = np.bincount(cells, minlength=n_groups * n_classes**2).reshape(n_groups, n_classes**2)
    drawn = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n)
    there = np.bincount(truth, minlength=n_classes) > 0
    recall = rates_of((drawn @ per_group).reshape(-1, n_classes, n_classes))[1][:, there]
    return recall[np.isfinite(recall).all(axis=1)].mean(axis=1)


def count_units(truth, member):
    """Count the groups that an interval over resampled groups stands on: those of the class that is in fewest.

    Parameters
    ----------
    truth, member : array of int, shape (N,)
        Class and group of each cell.
    """
    of_class = np.unique(np.stack([truth, member]), axis=1)[0]
    return int(np.unique(of_class, return_counts=True)[1].min()) if len(of_class) else 0


def accuracy_interval(truth, predicted, member, n_classes, *, n=500, seed=0):
    """95 % interval of balanced accuracy over resampled groups, or (None, None) where groups are too few.

    Parameters
    ----------
    truth, predicted, member, n_classes, n, seed
        As for `bootstrap_accuracy`.
    """
    resampled = bootstrap_accuracy(truth, predicted, member, n_classes, n=n, seed=seed)
    return interval_of(resampled, count_units(truth, member))


def precision_recall(truth, probability, n_classes):
    """Precision-recall curve of each class against the others.

    Parameters
    ----------
    truth : array of int, shape (N,)
    probability : array of float, shape (N, K)
    n_classes : int

    Returns
    -------
    list of dict
        Per class `average_precision`, and `precision` at the recalls 0.05, 0.10 … 1 (the best at that recall or a larger one).
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    curves = []
    for c in range(n_classes):
        precision, recall, _ = precision_recall_curve(truth == c, probability[:, c])
        best = np.maximum.accumulate(precision)  # from the largest recall to the smallest
        place = [np.flatnonzero(recall >= wanted - 1e-9)[-1] for wanted in RECALLS]
        average = average_precision_score(truth == c, probability[:, c])
        curves.append({"average_precision": float(average), "precision": np.round(best[place], 4).tolist()})
    return curves


def score_subgroups(truth, predicted, member, n_classes, categories, *, n=500, seed=0):
    """Score parts of the tested cells by themselves: where a classifier is worse than elsewhere, it is biased.

    Parameters
    ----------
    truth, predicted, member : array of int, shape (N,)
        True and predicted class, and group of each cell.
    n_classes : int
    categories : dict of str to array of str, shape (N,)
        What cells are divided by, e.g. ``plate``; cells without a text are left out. What divides nothing is not listed.
    n, seed : int
        Resamples of groups for the interval.

    Returns
    -------
    list of dict
        `by`, `part`, `cells`, `groups`, `classes` (how many occur there), `error` (share of cells that are wrong),
        `balanced_accuracy` over the classes that occur, with its 95 % interval `low`, `high` (None where groups are too few).
    """
    rows = []
    for by, values in categories.items():
        values = np.asarray(values).astype(str)
        parts = sorted(set(values.tolist()) - {""})
        for part in parts if len(parts) > 1 else ():
            own = values == part
            confusion = count_confusion(truth[own], predicted[own], n_classes)
            groups = len(np.unique(member[own]))
            low, high = accuracy_interval(truth[own], predicted[own], member[own], n_classes, n=n, seed=seed)
            row = {"by": by, "part": part, "cells": int(own.sum()), "groups": groups}
            row["classes"] = int((confusion.sum(axis=1) > 0).sum())
            row["error"] = float(np.mean(truth[own] != predicted[own]))
            rows.append(
                row | {"balanced_accuracy": summarize(confusion)["balanced_accuracy"], "low": low, "high": high}
            )
    return rows
