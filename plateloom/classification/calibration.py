"""Probabilities that can be believed, and sets of classes that hold what they promise, from predictions of held-out groups."""

import numpy as np

LEAST = 1e-4  # a probability of 0 is read as this: no finite number of neighbors or trees proves that something never occurs
HOTTEST = 100.0


def class_weights(truth, n_classes, equal):
    """Weight of each cell, mean 1, shape (N,): all the same, or so that all classes together weigh the same (`equal`)."""
    if not equal:
        return np.ones(len(truth))
    counts = np.bincount(truth, minlength=n_classes)
    return (len(truth) / ((counts > 0).sum() * np.maximum(counts, 1)))[truth]


def fit_temperature(probability, truth, weights=None):
    """Find the temperature at which probabilities fit best to what was true.

    One number, which can be learned from few groups and changes no cell's class.

    Parameters
    ----------
    probability : array of float, shape (N, K)
        Of held-out cells.
    truth : array of int, shape (N,)
    weights : array of float, shape (N,), optional

    Returns
    -------
    float in [0.05, 100]
        Above 1: the method was too sure of itself.
    """
    from scipy.optimize import minimize_scalar

    weights = np.ones(len(truth)) if weights is None else weights
    logits = np.log(np.clip(probability, LEAST, 1))

    def loss(log_temperature):
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1)
        normal = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float(np.mean(weights * (normal - scaled[np.arange(len(truth)), truth])))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def apply_temperature(probability, temperature):
    """Soften or sharpen probabilities.

    Parameters
    ----------
    probability : array of float, shape (N, K)
    temperature : float
        1 leaves them as they are.

    Returns
    -------
    ndarray of float64, shape (N, K)
        Rows sum to 1; the largest stays the largest.
    """
    probability = np.asarray(probability, float)
    if temperature == 1:
        return probability
    logits = np.log(np.clip(probability, LEAST, 1)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
    return raised / raised.sum(axis=1, keepdims=True)


def brier_score(probability, truth, weights=None):
    """Mean squared distance of probabilities from what was true, in [0, 2]; always saying 1 / K gives 1 - 1 / K.

    Parameters
    ----------
    probability : array of float, shape (N, K)
    truth : array of int, shape (N,)
    weights : array of float, shape (N,), optional
    """
    known = np.eye(probability.shape[1])[truth]
    return float(np.average(((probability - known) ** 2).sum(axis=1), weights=weights))


def calibration_error(confidence, correct, bins=10, weights=None):
    """Compute the expected calibration error: how far stated probabilities are from how often they are right.

    Parameters
    ----------
    confidence : array of float, shape (N,)
        Probability of the predicted class.
    correct : array of bool, shape (N,)
    bins : int
    weights : array of float, shape (N,), optional

    Returns
    -------
    float in [0, 1]

    Examples
    --------
    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    rows = reliability(confidence, correct, bins, weights)
    return round(float(sum(row["share"] * abs(row["confidence"] - row["accuracy"]) for row in rows)), 12)


def reliability(confidence, correct, bins=10, weights=None):
    """Bin cells by how sure their class was: rows of `confidence`, `accuracy` (means) and `share` of the cells.

    Parameters
    ----------
    confidence, correct, bins, weights
        As for `calibration_error`.

    Returns
    -------
    list of dict
        Bins that hold cells, ascending.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    weights = np.ones(len(confidence)) if weights is None else np.asarray(weights, float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(place):
        own = place == number
        mean = lambda values, own=own: float(np.average(values[own], weights=weights[own]))  # noqa: E731
        share = float(weights[own].sum() / weights.sum())
        rows.append({"confidence": mean(confidence), "accuracy": mean(correct), "share": share})
    return rows


def set_thresholds(probability, truth, groups, *, coverage=0.9):
    """Find how improbable the true class of a cell of a new group may be: the limit of its conformal set, class by class.

    Parameters
    ----------
    probability : array of float, shape (N, K)
        Of held-out cells.
    truth : array of int, shape (N,)
    groups : array, shape (N,)
        What is exchangeable: wells, plates or batches, not cells.
    coverage : float in (0, 1)

    Returns
    -------
    list of float or None, length K
        A class is in a cell's set if its probability is at least that. None: the class is in every set, since fewer groups
        have it than the coverage needs (9 for 0.9).

    Notes
    -----
    A random cell of a random new group is covered with at least that probability, for each class by itself: every group
    weighs 1 / (G + 1) whatever its number of cells, and what is missing lies beyond all (conformal prediction for hierarchical
    data, Lee, Barber and Willett 2023, arXiv:2306.06342). Scores come from models that have not seen the cell's group; the
    final model, which has seen all, is taken to be no worse than they are.
    """
    limits = []
    for c in range(probability.shape[1]):
        own = truth == c
        _, member, counts = np.unique(groups[own], return_inverse=True, return_counts=True)
        order = np.argsort(-probability[own, c], kind="stable")
        reached = np.cumsum((1 / ((len(counts) + 1) * counts))[member][order])
        enough = np.flatnonzero(reached >= coverage - 1e-12)
        limits.append(float(probability[own, c][order][enough[0]]) if len(enough) else None)
    return limits


def set_members(probability, limits):
    """Which classes cannot be excluded.

    Parameters
    ----------
    probability : array of float, shape (N, K)
    limits : sequence of float or None, length K
        From `set_thresholds`.

    Returns
    -------
    ndarray of bool, shape (N, K)
    """
    return np.asarray(probability) >= np.array([-1.0 if limit is None else limit for limit in limits]) - 1e-7
