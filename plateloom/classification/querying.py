"""Which cells a person should label next, and what the last labels have brought.

Labels are dear, so a batch holds cells that the classifier is in doubt about, unlike each other and from many wells and
plates. A share of it is drawn by chance: on chosen cells alone, which are the hard ones, nobody could tell how good the
classifier is.
"""

import itertools
import math

import numpy as np

POOL = 5  # so many times the cells wanted, the most doubtful ones, are made diverse
COMPONENTS = 20  # of the space in which cells are told apart
WELL_SHARE, PLATE_SHARE = 2.0, 1.5  # of a batch, over what every well or plate would get if all got the same


def choose_cells(X, *, plates, wells, count, probability=None, random_share=0.25, seed=0):
    """Choose the cells to label next.

    Parameters
    ----------
    X : array of float, shape (N, F)
        Features of candidates: cells without a label, drawn evenly over wells. NaN is allowed; a cell with nothing else is
        not chosen.
    plates, wells : sequence of str, length N
        Plate and well of each; wells of different plates need not differ in name.
    count : int
        Cells wanted; fewer are given where there are fewer.
    probability : array of float, shape (N, K), optional
        Of the classes by the present classifier. Without it the batch is diverse only.
    random_share : float in [0, 1]
        Share of the batch that is drawn by chance, whatever the classifier says.
    seed : int

    Returns
    -------
    chosen : ndarray of int64, shape (count,)
        Rows of X in the order in which they should be shown: any beginning of it is mixed alike.
    why : list of str
        ``random``, ``uncertain``, or ``diverse`` without a classifier.

    Notes
    -----
    Chance comes first and doubts nothing, so that it is a fair sample of the candidates. Of the `POOL` times as many most
    doubtful cells (by the margin between the two likeliest classes), k-means weighted by the doubt makes as many groups as
    cells are wanted, and the cell nearest to each center is taken, as Zhdanov (2019, arXiv:1901.05954) does; a group whose
    nearest cell would exceed its well's or plate's share gives its next one.
    """
    from sklearn.cluster import KMeans

    X = np.asarray(X, dtype=float)
    random = np.random.default_rng(seed)
    usable = np.flatnonzero(np.isfinite(X).any(axis=1))
    count = min(count, len(usable))
    if not count:
        return np.zeros(0, np.int64), []
    doubt = np.ones(len(X)) if probability is None else doubt_of(probability)
    room = _Room(np.asarray(plates)[usable], np.asarray(wells)[usable], count)
    by_chance, drawn = math.floor(random_share * count + 0.5), []
    order = random.permutation(len(usable))
    for place in order:
        if len(drawn) < by_chance and room.take(place):
            drawn.append(place)
    rest = np.setdiff1d(order, drawn)
    wanted = count - len(drawn)
    taken = []
    if wanted:
        # Without a classifier every cell is as doubtful as any other, and all are worth a look.
        most = len(rest) if probability is None else POOL * wanted
        shuffled = random.permutation(rest)  # among cells of one doubt, chance decides and not the order of wells
        ranked = shuffled[np.argsort(-doubt[usable[shuffled]], kind="stable")]
        pool = ranked[:most]
        space = embed(X[usable], seed=seed)[pool]
        weight = np.maximum(doubt[usable[pool]], 1e-3)
        groups = KMeans(min(wanted, len(pool)), n_init=1, random_state=seed).fit(space, sample_weight=weight)
        apart = np.linalg.norm(space - groups.cluster_centers_[groups.labels_], axis=1)
        for group in np.argsort(-np.bincount(groups.labels_, weight), kind="stable"):
            members = np.flatnonzero(groups.labels_ == group)
            for member in members[np.argsort(apart[members], kind="stable")]:
                if room.take(pool[member]):
                    taken.append(pool[member])
                    break
        spare = ranked[~np.isin(ranked, taken)]
        taken += itertools.islice(filter(room.take, spare), wanted - len(taken))
        spare = spare[~np.isin(spare, taken)]  # shares are wishes: the batch is filled without them
        taken += list(spare[: wanted - len(taken)])
    places = np.array(drawn + taken, np.int64)
    why = ["random"] * len(drawn) + ["diverse" if probability is None else "uncertain"] * len(taken)
    shown = random.permutation(len(places))
    return usable[places[shown]], [why[i] for i in shown]


class _Room:
    """What is left of the share of a batch that every well and plate may have."""

    def __init__(self, plates, wells, count):
        _, self.plate = np.unique(plates, return_inverse=True)
        _, self.well = np.unique(
            np.array([f"{p}/{w}" for p, w in zip(plates, wells, strict=True)]), return_inverse=True
        )
        self.left = [
            np.full(n, math.ceil(share * count / n))
            for n, share in ((self.plate.max() + 1, PLATE_SHARE), (self.well.max() + 1, WELL_SHARE))
        ]

    def take(self, place):
        """Whether the cell may be taken; if so it is."""
        left = [(self.left[0], self.plate[place]), (self.left[1], self.well[place])]
        if not all(share[i] for share, i in left):
            return False
        for share, i in left:
            share[i] -= 1
        return True


def doubt_of(probability):
    """Say how doubtful a classifier is: 1 minus the margin between the two likeliest classes.

    Parameters
    ----------
    probability : array of float, shape (N, K)
        NaN: nothing is known, so the doubt is 1.

    Returns
    -------
    ndarray of float64, shape (N,)
        In [0, 1].

    Examples
    --------
    >>> doubt_of(np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])).round(2).tolist()
    [1.0, 0.2]
    """
    probability = np.asarray(probability, dtype=float)
    if probability.shape[1] < 2:
        return np.ones(len(probability))
    best = np.sort(probability, axis=1)[:, -2:]
    return np.nan_to_num(1 - (best[:, 1] - best[:, 0]), nan=1.0)


def embed(X, *, seed=0):
    """Place cells in a space of a few dimensions in which all features count alike.

    Parameters
    ----------
    X : array of float, shape (N, F)
        NaN and infinity are the feature's median.
    seed : int

    Returns
    -------
    ndarray of float64, shape (N, K)
        Principal components of the standardized features, beyond 5 standard deviations clipped: debris must not span the space.
    """
    from sklearn.decomposition import PCA

    X = np.where(np.isfinite(X), X, np.nan)
    X = X[:, np.isfinite(X).any(axis=0)]
    X = np.where(np.isnan(X), np.nanmedian(X, axis=0), X)
    spread = X.std(axis=0)
    X = X[:, spread > 0]
    if not X.shape[1]:
        return np.zeros((len(X), 1))
    scaled = ((X - X.mean(axis=0)) / X.std(axis=0)).clip(-5, 5)
    kept = min(COMPONENTS, *scaled.shape)
    solver = "full" if min(scaled.shape) <= 50 else "randomized"
    return PCA(kept, svd_solver=solver, random_state=seed).fit_transform(scaled)


def measure_gain(X, y, groups, *, old, test, folds, fit, n_draws=4000, seed=0):
    """Compare the classifier before and after new labels on the same cells, none of which it has learned from.

    Parameters
    ----------
    X : array of float, shape (N, F)
        Features of all labeled cells.
    y, groups : array of str, shape (N,)
        Their classes, and their wells or plates.
    old : array of bool, shape (N,)
        Cells that had a label before.
    test : array of bool, shape (N,)
        Cells to count: those that were drawn by chance.
    folds : sequence of (sequence of str, Pipeline)
        Groups that each fold held out, and its pipeline, fitted to all other groups; its classes are positions among the
        sorted classes.
    fit : callable
        Fits a pipeline to features, classes as int and groups.
    n_draws : int
        From the posterior, for the intervals.
    seed : int

    Returns
    -------
    dict
        `n_cells`, `n_groups` counted; `before`, `after`, `gain`, each None or a dict of `value`, `low`, `high` (95 %): balanced
        accuracy over the classes that the counted cells have, and what it grew by. `before` is None where the earlier labels
        were of fewer than two classes.

    Notes
    -----
    The intervals are those of Jeffreys' prior, class by class, on the four ways in which a cell can be judged twice. Resampling
    would find no doubt at all where the ten cells that there are were all judged rightly. Cells of a well count as independent:
    a batch has one or two by chance of each.
    """
    X, y, groups = np.asarray(X, float), np.asarray(y).astype(str), np.asarray(groups).astype(str)
    classes, truth = np.unique(y, return_inverse=True)
    guessed = {"before": np.full(len(y), -1), "after": np.full(len(y), -1)}
    known = True
    for held, pipeline in folds:
        inside = np.isin(groups, list(held))
        chosen = np.flatnonzero(inside & test)
        if not len(chosen):
            continue
        guessed["after"][chosen] = pipeline.predict(X[chosen])
        earlier = np.flatnonzero(~inside & old)
        if len(np.unique(truth[earlier])) < 2:
            known = False
            continue
        guessed["before"][chosen] = fit(X[earlier], truth[earlier], groups[earlier]).predict(X[chosen])
    counted = np.flatnonzero(test & (guessed["after"] >= 0))
    found = {
        "n_cells": len(counted),
        "n_groups": len(np.unique(groups[counted])),
        "before": None,
        "after": None,
        "gain": None,
    }
    if not len(counted):
        return found
    right = {name: guessed[name][counted] == truth[counted] for name in guessed}
    random, exact, drawn = np.random.default_rng(seed), [], []
    for c in np.unique(truth[counted]):
        own = truth[counted] == c
        # Right before and after, before only, after only, never.
        kinds = np.bincount(2 * ~right["before"][own] + ~right["after"][own], minlength=4)
        exact.append(kinds / kinds.sum())
        drawn.append(random.dirichlet(kinds + 0.25, n_draws))
    exact, drawn = np.mean(exact, axis=0), np.mean(drawn, axis=0)
    found["after"] = _interval(exact[0] + exact[2], drawn[:, 0] + drawn[:, 2])
    if known:
        found["before"] = _interval(exact[0] + exact[1], drawn[:, 0] + drawn[:, 1])
        found["gain"] = _interval(exact[2] - exact[1], drawn[:, 2] - drawn[:, 1])
    return found


def _interval(value, drawn):
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}
