"""Share of each class in a well, with an interval that accounts for the classifier's errors."""

import numpy as np

DRAWS = 200


def draw_confusions(truth, predicted, groups, n_classes, *, n=DRAWS, seed=0):
    """Draw how a classifier may err in a new group, given how it erred in those that it was tested on.

    Parameters
    ----------
    truth, predicted : array of int, shape (N,)
        Classes of held-out cells.
    groups : array, shape (N,)
        Wells, plates or batches.
    n_classes : int
    n, seed : int

    Returns
    -------
    ndarray of float64, shape (1 + n, K, K)
        Rows: what cells of a class are taken for; each sums to 1. The first is the mean of all groups, the others differ
        from it by the choice of groups (a bootstrap) and as much as one group differs from the next.
    """
    random = np.random.default_rng(seed)
    drawn = np.empty((1 + n, n_classes, n_classes))
    for c in range(n_classes):
        own = truth == c
        names, member = np.unique(groups[own], return_inverse=True)
        counts = np.bincount(member * n_classes + predicted[own], minlength=len(names) * n_classes)
        counts = counts.reshape(len(names), n_classes).astype(float)
        resampled = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n) @ counts
        resampled = np.vstack([counts.sum(axis=0), resampled]) + 0.5 / n_classes
        means = resampled / resampled.sum(axis=1, keepdims=True)
        alike = _likeness(counts)
        drawn[0, c] = means[0]
        for i, mean in enumerate(means[1:], start=1):
            drawn[i, c] = random.dirichlet(mean * (1 / alike - 1)) if alike > 1e-4 else mean
    return drawn


def _likeness(counts):
    """How much more alike cells of one group are than cells of all: moment estimate of the intra-group correlation, in [0, 0.95]."""
    cells, total = counts.sum(axis=1), counts.sum()
    mean = counts.sum(axis=0) / total
    chance = (mean * (1 - mean)).sum()
    if len(counts) < 2 or chance <= 0:
        return 0.0
    size = (total - (cells**2).sum() / total) / (len(counts) - 1)
    if size <= 1:
        return 0.0
    spread = (cells[:, None] * (counts / cells[:, None] - mean) ** 2).sum() / (len(counts) - 1)
    return float(np.clip((spread / chance - 1) / (size - 1), 0, 0.95))


def adjust_prior(probability, prior, *, steps=200):
    """Estimate the share of each class among cells from their probabilities, by expectation and maximization.

    Parameters
    ----------
    probability : array of float, shape (N, K)
        Calibrated; each row sums to 1.
    prior : array of float, shape (K,)
        Shares of the classes for which these probabilities hold.
    steps : int

    Returns
    -------
    ndarray of float64, shape (K,)
        Saerens, Latinne, Decaestecker 2002, doi:10.1162/089976602753284446. NaN without cells.

    Examples
    --------
    >>> adjust_prior([[0.9, 0.1]] * 9 + [[0.4, 0.6]], [0.5, 0.5]).round(2).tolist()
    [1.0, 0.0]
    """
    probability, prior = np.asarray(probability, float), np.asarray(prior, float)
    shares = prior / prior.sum() if len(probability) else np.full(len(prior), np.nan)
    for _ in range(steps if len(probability) else 0):
        weighed = probability * (shares / prior)
        found = (weighed / weighed.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(found - shares).max() < 1e-6:
            return found
        shares = found
    return shares


def estimate_fractions(counts, confusions, *, fraction=None, whole=False, seed=0):
    """Estimate the share of each class in a well from what its cells were taken for.

    Parameters
    ----------
    counts : array of int, shape (K,)
        Cells of the well by predicted class.
    confusions : array of float, shape (1 + B, K, K)
        From `draw_confusions`.
    fraction : array of float, shape (K,), optional
        A better estimate than what the mean confusion gives, as that of `adjust_prior`.
    whole : bool
        Whether whole groups were labeled. Then some of their cells may be of another class than the label says, and what
        counts as an error be none: the interval reaches from no errors to those drawn.
    seed : int

    Returns
    -------
    dict of str to ndarray of float64, shape (K,)
        `observed`, what was counted; `fraction`, as given or else corrected for the classifier's errors; `low`, `high`, its
        95 % interval over the shares that could have given these counts (a posterior with half a cell of each class before
        any was seen) and the errors drawn. NaN without cells.

    Examples
    --------
    >>> found = estimate_fractions([50, 50], np.array([[[1.0, 0.0], [0.5, 0.5]]] * 3))
    >>> found["fraction"].round(2).tolist()
    [0.0, 1.0]
    """
    counts, confusions = np.asarray(counts, float), np.asarray(confusions, float)
    total = counts.sum()
    if not total:
        return {name: np.full(len(counts), np.nan) for name in ("observed", "fraction", "low", "high")}
    observed = counts / total
    cells = np.random.default_rng(seed).dirichlet(counts + 0.5, size=len(confusions) - 1)
    # what is counted = transposed confusion @ true shares
    shares = np.linalg.pinv(confusions.transpose(0, 2, 1), rcond=1e-6) @ np.vstack([observed, cells])[..., None]
    shares = np.round(_onto_simplex(shares[..., 0]), 6)
    fraction = shares[0] if fraction is None else np.asarray(fraction, float)
    bounds = [np.quantile(drawn, [0.025, 0.975], axis=0) for drawn in ([cells, shares[1:]] if whole else [shares[1:]])]
    return {
        "observed": observed,
        "fraction": fraction,
        "low": np.minimum(np.min(bounds, axis=0)[0], fraction),
        "high": np.maximum(np.max(bounds, axis=0)[1], fraction),
    }


def _onto_simplex(points):
    """The nearest points that are no less than 0 and sum to 1, shape (B, K)."""
    ordered = -np.sort(-points, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, points.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    return np.maximum(points - excess[np.arange(len(points)), last][:, None], 0)
