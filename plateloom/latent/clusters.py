"""Clusters of cells: found in principal components of a sample, tested on other wells, then given to each cell by itself."""

from dataclasses import dataclass

import numpy as np

from plateloom.errors import ModelMismatchError
from plateloom.latent import CLUSTERINGS
from plateloom.latent.maps import fuzzy_weights
from plateloom.latent.neighbors import BLOCK, nearest_rows
from plateloom.registry import load_method
from plateloom.schema import is_angle

NONE = -1
STABLE, DOUBTFUL = 0.75, 0.6  # Hennig's limits: from the one on a cluster is found again, below the other it is not
DRAWN = 0.632  # share of the wells in a draw: as many different ones as a bootstrap has
MIN_WELLS = 3
NEIGHBORS = 15
ALIKE = 0.8  # features correlated more than this tell the same of a cluster
SHOWN = 3
LEAST, LARGEST = 0.5, 100.0  # smaller differences are not worth telling, larger ones are all the same [robust SD]
OUTLYING = 10.0  # so far a cell counts in a correlation [robust SD]
EXAMPLES = 6


@dataclass(frozen=True)
class Clusters:
    """Fitted clusters, numbered 0, 1 … by their size in the sample, the largest first.

    Attributes
    ----------
    config : dict
        JSON: `method`, `params` (those chosen), `number` of clusters, `stability` per cluster and `agreement` (see
        `measure_stability`; None: not known), `resamples`, `tried` (what was chosen from) and `reason` (why these, or '').
    centers : ndarray of float64, shape (C, K)
        Mean of each cluster's rows of the sample.
    reach : ndarray of float64, shape (C,)
        A cell whose neighbors are farther than this is in no cluster; infinite where the method leaves none out.
    sample : ndarray of float32, shape (n, K)
        Empty where cells go to the nearest center.
    labels : ndarray of int32, shape (n,)
        Cluster of each row of the sample; -1: none. As empty as `sample`.
    """

    config: dict
    centers: np.ndarray
    reach: np.ndarray
    sample: np.ndarray
    labels: np.ndarray

    def assign(self, components):
        """Find the cluster of each cell.

        Parameters
        ----------
        components : array of float, shape (N, K)
            Principal components, by `Map.project`.

        Returns
        -------
        ndarray of int32, shape (N,)
            -1: in no cluster, or not finite.

        Notes
        -----
        k-means: the nearest center. HDBSCAN, Leiden: a vote of the nearest rows of the sample, weighted as `Map.transform`
        weighs them; those in no cluster vote as well, and a row of the sample keeps its label. A cell that is farther from
        its neighbors than any row of its cluster is in none (HDBSCAN only). Every cell is judged by itself, so it does not matter
        which others come with it.
        """
        components = np.asarray(components, float)
        if components.ndim != 2 or components.shape[1] != self.centers.shape[1]:
            raise ModelMismatchError(
                f"The clusters were fitted on {self.centers.shape[1]} components, found an array of shape {components.shape}."
            )
        found = np.full(len(components), NONE, np.int32)
        usable = np.flatnonzero(np.isfinite(components).all(axis=1))
        for start in range(0, len(usable) if len(self.centers) else 0, BLOCK):
            rows = usable[start : start + BLOCK]
            found[rows] = self._vote(components[rows]) if len(self.sample) else self._nearest(components[rows])
        return found

    def _nearest(self, rows):
        """Number of the nearest center; of two as near the first."""
        return ((rows[:, None] - self.centers) ** 2).sum(axis=2).argmin(axis=1)

    def _vote(self, rows):
        """Weighted vote of the nearest rows of the sample; of two with as many votes the first."""
        dense = self.config["params"].get("min_samples", 0)
        k = min(max(NEIGHBORS, dense), len(self.sample))
        near, distance = nearest_rows(self.sample.astype(float), rows, k)
        weights = fuzzy_weights(np.where(distance[:, -1:] > 0, distance, 1.0))  # all at the same place count alike
        labels = self.labels[near]
        votes = np.stack([np.where(labels == c, weights, 0).sum(axis=1) for c in range(len(self.centers))], axis=1)
        chosen = votes.argmax(axis=1)
        outside = np.where(labels == NONE, weights, 0).sum(axis=1) > votes.max(axis=1)
        if dense:
            outside |= distance[:, min(dense, k) - 1] > self.reach[chosen]
        return np.where(outside, NONE, chosen)

    def to_arrays(self):
        """Take the clusters apart for `np.savez` and JSON: arrays by name, without pickle, and the config."""
        return {name: getattr(self, name) for name in ("centers", "reach", "sample", "labels")}, dict(self.config)

    @classmethod
    def from_arrays(cls, arrays, config):
        """Put clusters together again; see `to_arrays`.

        Raises
        ------
        ModelMismatchError
            If the parts do not belong together.
        """
        names = {"centers", "reach", "sample", "labels"}
        if set(arrays) != names:
            raise ModelMismatchError(f"Found the arrays {sorted(arrays)}. Expected {sorted(names)}.")
        arrays = {name: np.asarray(value) for name, value in arrays.items()}
        if not len(arrays["centers"]) == len(arrays["reach"]) == config["number"] or len(arrays["sample"]) != len(
            arrays["labels"]
        ):
            raise ModelMismatchError(f"The arrays do not fit {config['number']} clusters.")
        return cls(config=dict(config), **arrays)


def fit_clusters(components, wells, *, method, params, resamples=20):
    """Find clusters in a sample of cells, and how stable they are.

    Parameters
    ----------
    components : array of float, shape (n, K)
        Principal components; finite.
    wells : array of str, shape (n,)
        Name of each cell's well.
    method : str
        A name in `plateloom.latent.CLUSTERINGS`.
    params : Params
        Of that method.
    resamples : int
        Draws of wells.

    Returns
    -------
    Clusters
    labels : ndarray of int32, shape (n,)
        Cluster of each row; -1: none.

    Notes
    -----
    A method may leave it open how fine its clusters are. Then the finest ones are taken of which every one is found
    again (a stability of at least 0.75), or, where that is true of none, those of which the least stable one is most stable.
    """
    from threadpoolctl import threadpool_limits

    module = load_method(CLUSTERINGS, method, "clustering method")
    components, wells = np.asarray(components, float), np.asarray(wells).astype(str)
    draws = draw_wells(wells, resamples)
    tried = []
    with threadpool_limits(limits=1):  # several threads would add up in another order
        for candidate in module.candidates(params, len(components)):
            labels = number_clusters(module.cluster(components, candidate), components)
            refits = [(rows, module.cluster(components[rows], candidate)) for rows in draws]
            tried.append((candidate, labels, *measure_stability(labels, refits)))
    known = [(min(stability), i) for i, (_, _, stability, _) in enumerate(tried) if stability]
    good = [i for least, i in known if least >= STABLE]
    reason = ""
    if len(tried) > 1 and not known:
        reason = f"the sample has fewer than {MIN_WELLS} wells, so nothing tells how many clusters there are"
    elif len(tried) > 1 and not good:
        reason = "of no number of clusters all were found again in other wells; taken is that with the best of the least stable ones"
    chosen = good[-1] if good else max(known)[1] if known else 0
    candidate, labels, stability, agreement = tried[chosen]
    number = int(labels.max(initial=NONE)) + 1
    config = {
        "method": method,
        "params": candidate.model_dump(mode="json"),
        "number": number,
        "stability": stability,
        "agreement": agreement,
        "resamples": len(draws),
        "tried": [
            {"number": int(found.max(initial=NONE)) + 1, "least": min(grades, default=None), "agreement": agreed}
            for _, found, grades, agreed in tried
        ],
        "reason": reason,
    }
    centers = np.array([components[labels == c].mean(axis=0) for c in range(number)])
    centers = centers.reshape(number, components.shape[1])
    reach = np.full(number, np.inf)
    kept = slice(0, 0) if module.BY_CENTER or not number else slice(None)
    sample = components[kept].astype(np.float32)
    if len(sample) and (dense := getattr(candidate, "min_samples", 0)):
        exact = sample.astype(float)
        core = np.concatenate(
            [
                nearest_rows(exact, exact[start : start + BLOCK], dense)[1][:, -1]
                for start in range(0, len(exact), BLOCK)
            ]
        )
        reach = np.array([core[labels == c].max() for c in range(number)])
    return Clusters(config, centers, reach, sample, labels[kept]), labels


def draw_wells(wells, resamples):
    """Draw wells without replacement, again and again, always the same.

    Parameters
    ----------
    wells : array of str, shape (n,)
        Well of each cell.
    resamples : int

    Returns
    -------
    list of ndarray of int
        Positions of the cells in the wells of each draw; no draw where there are fewer than three wells.

    Notes
    -----
    Wells and not cells, since the cells of a well are alike; without replacement, since cells that are there twice
    would make every place dense.
    """
    names, of = np.unique(wells, return_inverse=True)
    if len(names) < MIN_WELLS:
        return []
    random = np.random.default_rng(0)
    wanted = max(2, round(DRAWN * len(names)))
    return [np.flatnonzero(np.isin(of, random.permutation(len(names))[:wanted])) for _ in range(resamples)]


def number_clusters(labels, components):
    """Number clusters by their size, the largest 0; those of the same size by their place on the first axis.

    Parameters
    ----------
    labels : array of int, shape (n,)
        Below 0: in no cluster.
    components : array of float, shape (n, K)

    Returns
    -------
    ndarray of int32, shape (n,)

    Examples
    --------
    >>> number_clusters([7, -1, 3, 3], np.zeros((4, 1)))
    array([ 1, -1,  0,  0], dtype=int32)
    """
    labels = np.asarray(labels)
    found = np.full(len(labels), NONE, np.int32)
    names = np.unique(labels[labels >= 0])
    order = sorted(names, key=lambda name: (-(labels == name).sum(), components[labels == name, 0].mean()))
    for number, name in enumerate(order):
        found[labels == name] = number
    return found


def measure_stability(labels, refits):
    """Compare clusters with those that are found in parts of the same cells.

    Parameters
    ----------
    labels : array of int, shape (n,)
        -1: in no cluster.
    refits : sequence of (array of int, array of int)
        Positions of the cells of each part, and the clusters found in it, numbered in any way.

    Returns
    -------
    stability : list of float in [0, 1], length C
        Mean over the parts of the Jaccard index with the cluster that is most alike (Hennig 2007,
        doi:10.1016/j.csda.2006.11.025); a cluster without a cell in a part counts as not found. Empty without parts.
    agreement : float or None
        Mean adjusted Rand index of all cells, those in no cluster as one of their own.

    Examples
    --------
    >>> measure_stability(np.array([0, 0, 1, 1]), [([0, 1, 2], np.array([5, 5, 2])), ([1, 2, 3], np.array([0, 0, 0]))])
    ([0.666..., 0.833...], 0.5)
    """
    from sklearn.metrics import adjusted_rand_score

    if not len(refits):
        return [], None
    number = int(labels.max(initial=NONE)) + 1
    grades, agreed = [], []
    for rows, found in refits:
        own = labels[rows]
        agreed.append(adjusted_rand_score(own, found))
        other = np.unique(found[found >= 0])
        mine, theirs = own[:, None] == np.arange(number), found[:, None] == other
        both = mine.T.astype(float) @ theirs.astype(float)
        either = mine.sum(axis=0)[:, None] + theirs.sum(axis=0) - both
        grades.append((both / np.maximum(either, 1)).max(axis=1, initial=0))
    return [float(grade) for grade in np.mean(grades, axis=0)], float(np.mean(agreed))


def describe_clusters(labels, components, values, *, fitted, wells):
    """Say what is in each cluster, and by what it differs from the other cells.

    Parameters
    ----------
    labels : array of int, shape (n,)
        -1: in no cluster.
    components : array of float, shape (n, K)
    values : array of float, shape (n, F)
        Features; NaN counts as the sample's median.
    fitted : Map
        With the names of the features; those that it has dropped tell nothing.
    wells : array of str, shape (n,)

    Returns
    -------
    list of dict
        JSON, one per cluster: `cluster`, `cells`, `share` of the sample, `of_one_well` (largest share of its cells that comes from
        a single well), `features` (pairs of a name and the difference of the medians, cluster minus all other cells [robust SD of
        the side that varies more: half of the range of its middle 68 %]; the three largest of at least 0.5, of several that are correlated one, no angles, whose ends are one) and `examples` (positions of the cells nearest to its center,
        each of another well while there are others).
    """
    scaled = np.where(np.isfinite(values), values, fitted.median)
    middle, scale = _middle(scaled)
    scale = np.where(scale > 0, scale, scaled.std(axis=0))
    scale = np.where((scale > 0) & (fitted.scale > 0), scale, np.inf)
    scale[[is_angle(name) for name in fitted.features]] = np.inf
    scaled = ((scaled - middle) / scale).clip(-LARGEST, LARGEST).astype(np.float32)
    features, told = fitted.features, []
    for cluster in range(int(labels.max(initial=NONE)) + 1):
        inside = labels == cluster
        own, spread = _middle(scaled[inside])
        other, of_others = (own, spread) if inside.all() else _middle(scaled[~inside])
        spread = np.maximum(spread, of_others)
        difference = (own - other) / np.where(spread > 0, spread, 1)
        within = scaled - np.where(inside[:, None], own, other)
        counts = np.unique(wells[inside], return_counts=True)[1]
        distance = ((components[inside] - components[inside].mean(axis=0)) ** 2).sum(axis=1)
        order = np.flatnonzero(inside)[np.argsort(distance, kind="stable")]
        _, first = np.unique(wells[order], return_index=True)
        spread = [*np.sort(first), *np.setdiff1d(np.arange(len(order)), first)]
        told.append(
            {
                "cluster": cluster,
                "cells": int(inside.sum()),
                "share": float(inside.mean()),
                "of_one_well": float(counts.max() / inside.sum()),
                "features": [[features[i], float(difference[i])] for i in _tell_apart(difference, within)],
                "examples": [int(i) for i in order[spread[:EXAMPLES]]],
            }
        )
    return told


def _middle(values):
    """Median and robust standard deviation of every column, by the middle 68 %.

    By the MAD, half of the cells decide: a feature that is next to 0 in them would differ by hundreds of its deviations.
    """
    low, middle, high = np.percentile(values, [16, 50, 84], axis=0)
    return middle, (high - low) / 2


def _tell_apart(difference, within):
    """Positions of the features that differ most, none correlated with one before it among the cells of either side."""
    chosen, columns = [], []
    for i in np.argsort(-np.abs(difference), kind="stable"):
        if abs(difference[i]) < LEAST or len(chosen) == SHOWN:
            break
        column = within[:, i].clip(-OUTLYING, OUTLYING)
        if column.std() == 0 or all(abs(np.corrcoef(column, earlier)[0, 1]) <= ALIKE for earlier in columns):
            chosen.append(int(i))
            columns += [column] if column.std() > 0 else []
    return chosen
