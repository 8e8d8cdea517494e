"""Would more labels help? The same test with fewer of the groups to learn from."""

import numpy as np

from plateloom.classification.fitting import fit_method
from plateloom.classification.scores import bootstrap_accuracy, count_confusion, count_units, summarize
from plateloom.classification.splits import split_groups
from plateloom.intervals import interval_of

SHARES = (0.125, 0.25, 0.5, 1.0)
MOST_CELLS = 2000
FOLDS = 3


def learn_by_steps(X, truth, groups, *, method, params, balance="weights", folds=FOLDS, n=500, seed=0):
    """Test a method that learns from ever more groups, always on the same held-out ones.

    Parameters
    ----------
    X : ndarray of float64, shape (N, F)
    truth : ndarray of int, shape (N,)
    groups : ndarray of str, shape (N,)
    method, params, balance
        As for `plateloom.classification.fitting.fit_method`.
    folds : int
    n, seed : int
        Resamples of groups.

    Returns
    -------
    dict
        `steps`: rows of `groups` and `cells` learned from (means over the folds), `balanced_accuracy`, `low`, `high`. `gain`, with
        `gain_low`, `gain_high`: what the last step, from half of the groups to all, has brought, with its 95 % interval over
        resampled groups. More than 2,000 cells are drawn from evenly. Without steps where groups are too few.
    """
    rows = _draw(groups, seed)
    X, truth, groups = X[rows], truth[rows], groups[rows]
    _, member = np.unique(groups, return_inverse=True)
    n_classes = truth.max() + 1
    try:
        splits = split_groups(truth, groups, folds=min(folds, member.max() + 1), seed=seed)
    except ValueError:
        return {"steps": [], "gain": None, "gain_low": None, "gain_high": None}
    predicted = np.full((len(SHARES), len(truth)), -1)
    sizes = np.zeros((len(SHARES), 2))
    for train, test in splits:
        order = _deal(truth[train], member[train], seed)
        wanted = [max(round(share * len(order)), 2) for share in SHARES]
        for step, number in enumerate(wanted):
            if number in wanted[step + 1 :]:  # so few groups that the next step would be the same
                continue
            chosen = order[:number]
            part = train[np.isin(member[train], chosen)]
            if len(np.unique(truth[part])) < n_classes:
                continue
            pipeline, _ = fit_method(
                X[part], truth[part], groups[part], method=method, params=params, balance=balance, seed=seed
            )
            predicted[step, test] = pipeline.predict(X[test])
            sizes[step] += len(chosen) / len(splits), len(part) / len(splits)
    steps, resampled, units = [], {}, count_units(truth, member)
    for step in range(len(SHARES)):
        if (predicted[step] < 0).any():  # too few groups to have every class
            continue
        resampled[step] = bootstrap_accuracy(truth, predicted[step], member, n_classes, n=n, seed=seed)
        low, high = interval_of(resampled[step], units)
        score = summarize(count_confusion(truth, predicted[step], n_classes))["balanced_accuracy"]
        row = {"groups": round(float(sizes[step, 0]), 1), "cells": round(float(sizes[step, 1]))}
        steps.append(row | {"balanced_accuracy": score, "low": low, "high": high})
    found = {"steps": steps, "gain": None, "gain_low": None, "gain_high": None}
    last, half = len(SHARES) - 1, len(SHARES) - 2
    if last in resampled and half in resampled:  # the same seed draws the same groups, so they are paired
        low, high = interval_of(resampled[last] - resampled[half], units)
        gain = steps[-1]["balanced_accuracy"] - steps[-2]["balanced_accuracy"]
        found |= {"gain": gain, "gain_low": low, "gain_high": high}
    return found


def _draw(groups, seed):
    """At most `MOST_CELLS` rows, as evenly over groups as they allow."""
    random = np.random.default_rng(seed)
    rows = random.permutation(len(groups))
    _, member = np.unique(groups[rows], return_inverse=True)
    turn = np.empty(len(rows), int)
    for group in np.unique(member):
        own = np.flatnonzero(member == group)
        turn[own] = np.arange(len(own))
    return np.sort(rows[np.argsort(turn, kind="stable")][:MOST_CELLS])


def _deal(truth, member, seed):
    """Groups in an order of chance of which any beginning holds all classes as soon as can be."""
    random = np.random.default_rng(seed)
    left = [random.permutation(np.unique(member[truth == c])).tolist() for c in range(truth.max() + 1)]
    order = []
    while any(left):
        for groups in left:
            while groups and groups[0] in order:
                groups.pop(0)
            if groups:
                order.append(groups.pop(0))
    return np.array(order)
