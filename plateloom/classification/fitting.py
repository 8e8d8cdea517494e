"""Fitting a method: balance of the classes, search of its settings, what a fit has to say."""

import itertools
import warnings

import numpy as np

from plateloom.classification import CROP_METHODS, METHODS
from plateloom.classification.scores import count_confusion, summarize
from plateloom.classification.splits import split_groups
from plateloom.registry import load_method

BALANCES = ("weights", "subsample", "none")
INNER_FOLDS = 3


def fit_method(X, truth, groups, *, method, params, balance="weights", seed=0, threads=1):
    """Fit a method with unequal classes made equal, or not.

    Parameters
    ----------
    X : ndarray of float64, shape (N, F), or of float, shape (N, C, H, W)
        Features, or crops.
    truth : ndarray of int, shape (N,)
    groups : ndarray, shape (N,)
    method : str
        A name in `plateloom.classification.METHODS`; of crops in `CROP_METHODS`.
    params : Params
    balance : {"weights", "subsample", "none"}
        'weights': cells of rare classes count more. 'subsample': abundant classes give as many cells as the rarest, evenly
        over their groups. 'none': classes count as they are labeled.
    seed, threads : int

    Returns
    -------
    pipeline : sklearn.pipeline.Pipeline
    notes : list of str
    """
    if balance not in BALANCES:
        raise ValueError(f"Unknown balance {balance!r}. Expected one of {', '.join(BALANCES)}.")
    if balance == "subsample":
        rows = subsample(truth, groups, seed=seed)
        X, truth, groups = X[rows], truth[rows], groups[rows]
    module = load_method(METHODS | CROP_METHODS, method, "classification method")
    estimator = module.build(params, weights=balance == "weights")
    if method not in CROP_METHODS:
        return fit_quietly(make_pipeline(estimator), X, truth, threads=threads)
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline([("estimator", estimator)]).fit(X, truth, estimator__groups=groups)
    return pipeline, pipeline["estimator"].notes_


def make_pipeline(estimator):
    """Put before an estimator what all methods share: the median for gaps, standard scaling.

    Parameters
    ----------
    estimator : sklearn.base.BaseEstimator

    Returns
    -------
    sklearn.pipeline.Pipeline
        Not fitted; `imputer`, `scaler`, `estimator`.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    return Pipeline([("imputer", imputer), ("scaler", StandardScaler()), ("estimator", estimator)])


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
    from sklearn.linear_model import LogisticRegression

    own = pipeline["estimator"].get_params()
    threaded = threads > 1 and "n_jobs" in own and own["n_jobs"] is None
    threaded = threaded and not isinstance(pipeline["estimator"], LogisticRegression)  # which warns that it ignores it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        if threaded:
            pipeline.set_params(estimator__n_jobs=threads)
        pipeline.fit(X, y)
        if threaded:
            pipeline.set_params(estimator__n_jobs=None)
    notes = []
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            notes.append(str(warning.message).splitlines()[0])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return pipeline, notes


def subsample(truth, groups, *, seed=0):
    """Choose as many cells of each class as the rarest has, as evenly over its groups as they allow.

    Parameters
    ----------
    truth, groups : array, shape (N,)
    seed : int

    Returns
    -------
    ndarray of int64
        Rows, ascending.

    Examples
    --------
    >>> subsample(np.array([0, 0, 0, 0, 1, 1]), np.array(["A1", "A1", "A2", "A2", "A3", "A3"])).tolist()[2:]
    [4, 5]
    """
    random = np.random.default_rng(seed)
    classes, counts = np.unique(truth, return_counts=True)
    kept = []
    for name in classes:
        rows = random.permutation(np.flatnonzero(truth == name))
        turn = np.empty(len(rows), int)  # the how-manieth of its group a cell is
        for group in np.unique(groups[rows]):
            own = np.flatnonzero(groups[rows] == group)
            turn[own] = np.arange(len(own))
        kept.append(rows[np.argsort(turn, kind="stable")][: counts.min()])
    return np.sort(np.concatenate(kept))


def search_params(X, truth, groups, *, method, params, balance="weights", seed=0):
    """Choose a method's settings from its small grid, by groups among those that it may learn from.

    Parameters
    ----------
    X, truth, groups, method, params, balance
        As for `fit_method`; what the grid does not name is kept.
    seed : int

    Returns
    -------
    Params
        Of the best balanced accuracy in up to 3 inner folds; the first of equals, and the given ones where the groups cannot
        be split again.
    """
    grid = load_method(METHODS | CROP_METHODS, method, "classification method").GRID
    n_groups, n_classes = len(np.unique(groups)), truth.max() + 1
    try:
        splits = split_groups(truth, groups, folds=min(INNER_FOLDS, n_groups), seed=seed)
    except ValueError:
        return params
    best, chosen = -1.0, params
    for values in itertools.product(*grid.values()):
        tried = params.model_copy(update=dict(zip(grid, values, strict=True)))
        confusion = np.zeros((n_classes, n_classes), int)
        for train, test in splits:
            options = {"method": method, "params": tried, "balance": balance, "seed": seed}
            pipeline, _ = fit_method(X[train], truth[train], groups[train], **options)
            confusion += count_confusion(truth[test], pipeline.predict(X[test]), n_classes)
        score = summarize(confusion)["balanced_accuracy"]
        if score > best + 1e-9:
            best, chosen = score, tried
    return chosen
