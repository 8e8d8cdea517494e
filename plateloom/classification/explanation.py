"""What a model goes by: families of features that it is worse without, features that move its trees, and pairs of cells
that are nearly alike and yet of two classes. All on cells of groups that it has not seen."""

import functools
import itertools
import warnings

import numpy as np

from plateloom.classification.calibration import apply_temperature
from plateloom.classification.model import input_space
from plateloom.classification.regression import resample_r2
from plateloom.classification.scores import bootstrap_accuracy, count_confusion, count_units, summarize
from plateloom.intervals import interval_of
from plateloom.schema import is_angle

MOST_CELLS = 4000
TREES = ("random_forest", "gradient_boosting", "forest_regression")
MOST_EXPLAINED = 300  # cells that Shapley values are computed of
LEAST_EXPLAINED = 10  # per fold, however large the trees
OPERATIONS = 3e10  # that Shapley values may take, half a minute
NAMED = 20  # features
CLASS_PAIRS = 3
DIFFERING = 5


def family_of(feature):
    """Group that a feature is permuted with: compartment and family, or the latents as one.

    Features of a family say nearly the same; permuted one by one each would seem to be of no use, since the others stand in.

    Examples
    --------
    >>> family_of("Nuclei_Texture_Contrast_DNA_3_00_256"), family_of("Latent_Autoencoder_03")
    ('Nuclei Texture', 'Latent Autoencoder')
    """
    return " ".join(feature.split("_")[:2])


def permute_families(X, y, groups, *, features, pipelines, folds, repeats=3, n_bootstrap=500, seed=0):
    """Measure how much worse predictions become when a family of features is shuffled among held-out cells.

    Parameters
    ----------
    X : array of float, shape (N, F) or (N, F, H, W)
        Features of the labeled cells, or crops, of which whole channels are shuffled.
    y, groups : array of str, shape (N,)
        As for `plateloom.classification.evaluation.evaluate`, or `y` of float as for
        `plateloom.classification.regression.evaluate_numbers`.
    features : sequence of str, length F
        Or channels.
    pipelines : sequence of sklearn.pipeline.Pipeline
        What that kept of its folds: each is asked about the groups only that it has not seen.
    folds : sequence of dict
        The `folds` that it returned, in the same order.
    repeats : int
        Shuffles, the mean of which is stated.
    n_bootstrap, seed : int

    Returns
    -------
    list of dict
        Per family (see `family_of`; of crops per channel): `family`, `features` (how many), `loss` of balanced accuracy, of numbers of R²,
        with its 95 % interval over resampled groups `low`, `high` (None where they are too few). The greatest loss first.

    Notes
    -----
    Breiman 2001, doi:10.1023/A:1010933404324, with groups of features. A loss of 0 means that the others suffice, not that the
    family differs in nothing. Up to 4,000 cells, drawn evenly over the folds.
    """
    _, member = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    quota = -(-MOST_CELLS // max(len(folds), 1))
    held = [random.permutation(np.flatnonzero(np.isin(groups, fold["groups"])))[:quota] for fold in folds]
    rows = np.concatenate(held)
    families = np.array(list(features) if np.ndim(X) == 4 else [family_of(name) for name in features])
    options = {"n": n_bootstrap, "seed": seed}
    if np.asarray(y).dtype.kind == "f":
        learned = [np.mean(y[~np.isin(groups, fold["groups"])]) for fold in folds]
        score = functools.partial(_score_numbers, y[rows], np.repeat(learned, [len(own) for own in held]))
        units = len(np.unique(member[rows]))
    else:
        classes, truth = np.unique(y, return_inverse=True)
        score = functools.partial(_score_classes, truth[rows], len(classes))
        units = count_units(truth[rows], member[rows])

    def predict(columns=None):
        guess = []
        for pipeline, own in zip(pipelines, held, strict=True):
            values = X[own].copy()
            if columns is not None:
                values[:, columns] = values[random.permutation(len(own))][:, columns]
            guess.append(pipeline.predict(values))
        return np.concatenate(guess)

    whole, of_whole = score(predict(), member[rows], **options)
    found = []
    for family in np.unique(families):
        columns = np.flatnonzero(families == family)
        shuffled = [score(predict(columns), member[rows], **options) for _ in range(repeats)]
        # the same groups are drawn for every score, so the resamples are paired
        low, high = interval_of(of_whole - np.mean([resampled for _, resampled in shuffled], axis=0), units)
        loss = whole - float(np.mean([level for level, _ in shuffled]))
        found.append({"family": str(family), "features": len(columns), "loss": loss, "low": low, "high": high})
    return sorted(found, key=lambda row: -row["loss"])


def _score_classes(truth, n_classes, guess, member, **options):
    """Balanced accuracy, and that of resampled groups."""
    resampled = bootstrap_accuracy(truth, guess, member, n_classes, **options)
    return summarize(count_confusion(truth, guess, n_classes))["balanced_accuracy"], resampled


def _score_numbers(truth, guessed, predicted, member, **options):
    """R², and that of resampled groups."""
    wrong, guesses = (truth - predicted) ** 2, (truth - guessed) ** 2
    return 1 - wrong.sum() / guesses.sum(), resample_r2(wrong, guesses, member, **options)


def explain_trees(X, y, groups, *, features, pipelines, folds, seed=0):
    """Attribute what trees say of held-out cells to features: Shapley values, exact for trees.

    Parameters
    ----------
    X, y, groups, features, pipelines, folds
        As for `permute_families`; the method is one of `TREES`.
    seed : int

    Returns
    -------
    dict
        `cells`; `unit` of the values: ``probability`` of a forest, ``log odds`` of boosted trees, ``prediction`` of numbers; `families`: rows of
        `family`, `features` (how many) and `values`, by class (one, of numbers) the mean over cells of the absolute sum of the values of its features; `features`:
        rows of `feature` and `values`, the mean of the absolute ones, of up to 20. The largest sums over classes first.

    Notes
    -----
    Lundberg et al. 2020, doi:10.1038/s42256-019-0138-9, by the shap package, along the paths of the trees. Of features that say the
    same, any may get the credit; a family's values are summed before their size counts. Up to 300 cells, fewer of large forests.
    """
    numbers = np.asarray(y).dtype.kind == "f"
    n_classes = 1 if numbers else len(np.unique(y))
    random = np.random.default_rng(seed)
    families = np.array([family_of(name) for name in features])
    names = np.unique(families)
    single, whole, cells, unit = np.zeros((len(features), n_classes)), np.zeros((len(names), n_classes)), 0, ""
    for pipeline, fold in zip(pipelines, folds, strict=True):
        trees = pipeline["estimator"]
        quota = max(MOST_EXPLAINED // len(folds), 1)
        unit = "log odds"
        if hasattr(trees, "estimators_"):
            unit = "prediction" if numbers else "probability"
            work = n_classes * sum(one.tree_.n_leaves * one.tree_.max_depth**2 for one in trees.estimators_)
            quota = min(quota, max(LEAST_EXPLAINED, int(OPERATIONS / len(folds) / max(work, 1))))
        own = random.permutation(np.flatnonzero(np.isin(groups, fold["groups"])))[:quota]
        values = shapley_values(trees, input_space(pipeline, X[own]))
        single += np.abs(values).sum(axis=0)
        whole += np.array([np.abs(values[:, families == name].sum(axis=1)).sum(axis=0) for name in names])
        cells += len(own)
    counted = {name: int((families == name).sum()) for name in names}
    by_family = [
        {"family": str(names[i]), "features": counted[names[i]], "values": (whole[i] / cells).tolist()}
        for i in np.argsort(-whole.sum(axis=1), kind="stable")
    ]
    by_feature = [
        {"feature": str(features[i]), "values": (single[i] / cells).tolist()}
        for i in np.argsort(-single.sum(axis=1), kind="stable")[:NAMED]
    ]
    return {"cells": cells, "unit": unit, "families": by_family, "features": by_feature}


def shapley_values(trees, X):
    """Compute how far each feature moves what trees say of each cell.

    Parameters
    ----------
    trees : RandomForestClassifier, RandomForestRegressor or HistGradientBoostingClassifier
        Fitted.
    X : array of float, shape (N, F)
        As the trees get it.

    Returns
    -------
    ndarray of float64, shape (N, F, K)
        They sum to the difference of a cell's output (probability, log odds or, with K = 1, number) from the mean one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # of matplotlib, at its import
        import shap
    values = np.asarray(shap.TreeExplainer(trees).shap_values(X, check_additivity=False), float)
    if not hasattr(trees, "classes_"):
        return values[:, :, None]
    # boosted trees of two classes have one output
    return values if values.ndim == 3 else np.stack([-values, values], axis=2)


def held_out_probability(X, groups, *, pipelines, folds, temperature=1.0):
    """Probability of each class for each cell, by the pipeline that has not seen its group, shape (N, K)."""
    probability = None
    for pipeline, fold in zip(pipelines, folds, strict=True):
        own = np.isin(groups, fold["groups"])
        found = pipeline.predict_proba(X[own])
        probability = np.zeros((len(X), found.shape[1])) if probability is None else probability
        probability[own] = found
    return apply_temperature(probability, temperature)


def find_pairs(probability, truth, space, *, features=None, X=None):
    """Find the most typical cell of each class, and the cell of another class that is nearest to it.

    Parameters
    ----------
    probability : array of float, shape (N, K)
        Of held-out cells, see `held_out_probability`.
    truth : array of int, shape (N,)
        The labels.
    space : array of float, shape (N, S)
        Where cells are compared, see `plateloom.classification.model.input_space`.
    features : sequence of str, length S, optional
        Names of its columns, if they have any.
    X : array of float, shape (N, S), optional
        Their values in their own units.

    Returns
    -------
    list of dict
        Of up to three pairs of classes, the most often confused first, and in both directions: `class` and `other` (int), `typical`
        and `nearest` (rows), `probability` and `nearest_probability` of their own classes, `distance` between them, `usual`: the
        median distance of the typical cell from cells of the other class, and `differ`: the five features that differ most
        (angles aside, whose ends are one), as rows of `feature`, `typical`, `nearest` (None for a gap) and `change` from the first to the second [standard deviations].

    Notes
    -----
    Cells whose label the classifier does not share are left out, as far as others are left: they would be the nearest ones.
    Of equally probable cells the one nearest to the mean of its class is typical.
    """
    truth, n_classes = np.asarray(truth), probability.shape[1]
    predicted = probability.argmax(axis=1)
    confusion = count_confusion(truth, predicted, n_classes)
    rate = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    told = np.array([i for i, name in enumerate(() if features is None else features) if not is_angle(name)], int)
    members = {}
    for c in range(n_classes):
        own = np.flatnonzero((truth == c) & (predicted == c))
        members[c] = own if len(own) else np.flatnonzero(truth == c)
    classes = sorted(itertools.combinations(range(n_classes), 2), key=lambda pair: -rate[pair] - rate[pair[::-1]])
    found = []
    for one, other in [order for pair in classes[:CLASS_PAIRS] for order in (pair, pair[::-1])]:
        own, others = members[one], members[other]
        inside = np.linalg.norm(space[own] - space[own].mean(axis=0), axis=1)
        typical = own[np.lexsort([inside, -np.round(probability[own, one], 6)])[0]]
        apart = np.linalg.norm(space[others] - space[typical], axis=1)
        nearest = others[apart.argmin()]
        row = {"class": one, "other": other, "typical": int(typical), "nearest": int(nearest)}
        row["probability"] = float(probability[typical, one])
        row["nearest_probability"] = float(probability[nearest, other])
        row |= {"distance": float(apart.min()), "usual": float(np.median(apart)), "differ": []}
        change = space[nearest] - space[typical]
        for i in told[np.argsort(-np.abs(change[told]), kind="stable")[:DIFFERING]]:
            ends = {"typical": _plain(X[typical, i]), "nearest": _plain(X[nearest, i])}
            row["differ"].append({"feature": str(features[i]), **ends, "change": float(change[i])})
        found.append(row)
    return found


def _plain(value):
    """A float, or None for a gap."""
    return float(value) if np.isfinite(value) else None
