"""How well a method tells classes apart in wells, plates or batches that it has not seen.

Cells of one well share its staining, its density and its neighbors. A split by cell finds the well again and calls it
the class: on a screen without any signal it reports 90 % and more. So every split here is by group.
"""

import numpy as np

from plateloom.classification.calibration import (
    apply_temperature,
    brier_score,
    calibration_error,
    class_weights,
    fit_temperature,
    reliability,
    set_members,
    set_thresholds,
)
from plateloom.classification.fitting import fit_method, fit_quietly, search_params
from plateloom.classification.fractions import draw_confusions
from plateloom.classification.label_noise import find_suspects
from plateloom.classification.scores import (
    accuracy_interval,
    count_confusion,
    precision_recall,
    rates_of,
    score_subgroups,
    summarize,
)
from plateloom.classification.splits import check_groups, split_groups
from plateloom.errors import LabelError

MIN_BY_CHANCE = 20  # cells of each class that nobody chose, for figures of these alone

__all__ = ["calibration_error", "check_labels", "evaluate", "fit_quietly"]


def evaluate(
    X,
    y,
    groups,
    *,
    method,
    params,
    folds=5,
    scheme="well",
    balance="weights",
    tune=False,
    coverage=0.9,
    categories=None,
    wells=None,
    asked=None,
    n_bootstrap=500,
    seed=0,
    kept=None,
):
    """Predict each group from the others.

    Parameters
    ----------
    X : array of float, shape (N, F) or (N, C, H, W)
        Features of the labeled cells; NaN is imputed within each fold. Or crops of them, which have none.
    y : array of str, shape (N,)
        Their classes.
    groups : array of str, shape (N,)
        The well of each cell including its plate (`P1/A01`) for scheme 'well', its plate or batch for the other schemes.
    method : str
        A name in `plateloom.classification.METHODS`; of crops in `CROP_METHODS`.
    params : Params
        Of that method.
    folds : int
        Parts that the wells are dealt into.
    scheme : {"well", "plate", "batch"}
        'well': `folds` parts of wells, classes balanced over them. 'plate': each plate in turn (`folds` parts of
        plates if there are more than 20), the stricter test, which includes the effect of staining. 'batch': each batch.
    balance : {"weights", "subsample", "none"}
        Of unequal classes, see `plateloom.classification.fitting.fit_method`.
    tune : bool
        Search the method's settings, in each fold by other groups of its training part: nothing that is tested has a say.
    coverage : float in (0, 1)
        Of conformal sets.
    categories : dict of str to array of str, shape (N,), optional
        What the figures are also stated by (plate, batch …), to show bias.
    wells : array of str, shape (N,), optional
        The well of each cell including its plate, of which the intervals of a fold and of a subgroup are resampled: a
        plate held out is a single group. Default: the groups.
    asked : array of bool, shape (N,), optional
        Cells that were labeled because a classifier was in doubt about them. They are learned from; figures are of the others
        as soon as these hold 20 of each class in several folds.
    n_bootstrap : int
        Resamples of the groups for intervals; 0 for none.
    seed : int
        Of the split and of the bootstrap.
    kept : list, optional
        Takes the fitted pipeline of each fold, in the order of `folds` in what is returned.

    Returns
    -------
    dict
        Plain numbers, lists and text (JSON), all from predictions of cells of held-out groups, pooled over the folds:
        `scheme`, `method`, `balance`, `n_labels`, of which `n_cells` in `n_groups` are counted, `counted` (a sentence on
        cells that were `asked` for), `chance` (1 / number of classes), `error` (share of wrong cells),
        `balanced_accuracy` with its 95 % interval `balanced_accuracy_low` and `_high`, `macro_f1`, `classes`, `confusion`
        (rows: true, columns: predicted), `per_class` (rows of `class`, `precision`, `recall`, `f1`, `support`,
        `false_positives`, `false_negatives` [cells], `groups`, `average_precision`, `curve`: precision at recall 0.05, 0.1 … 1),
        `folds` (rows of `fold`, `groups`, `n_train`, `n_test`, `balanced_accuracy`, `low`, `high`, `macro_f1`, `params` if tuned),
        `calibration` (`temperature`, `brier`, `brier_before`, `expected_calibration_error` and `…_before`, `reliability`: rows
        of `reliability`, with `before`; 'after' is by a temperature of the other folds), `sets` (`coverage` asked for, `limits`
        by class, `groups_needed`, `covered`, `single`, `empty`: shares of cells, each judged by the limits of the other folds),
        `noise` (see `find_suspects`), `subgroups` (see `score_subgroups`), `confusion_draws` (see `draw_confusions`) and
        `warnings`. NaN is None, and so are intervals where a class is in fewer than 5 groups. With balance, calibration and sets' shares count all classes alike.

    Raises
    ------
    LabelError
        If the labels cannot support an honest test: one class, a class in fewer than two groups, fewer groups than
        folds.
    """
    X, y, groups = check_labels(X, y, groups)
    classes, truth = np.unique(y, return_inverse=True)
    names, member = np.unique(groups, return_inverse=True)
    unit = member if wells is None else np.unique(wells, return_inverse=True)[1]
    n_classes = len(classes)
    per_class = {str(name): len(np.unique(groups[y == name])) for name in classes}
    check_groups(groups, folds=folds, scheme=scheme, classes=y)
    splits = split_groups(truth, groups, folds=folds, scheme=scheme, seed=seed)
    probability, fold_of = np.full((len(y), n_classes), np.nan), np.zeros(len(y), int)
    for number, (_, test) in enumerate(splits):
        fold_of[test] = number
    counted, note = _counted_cells(truth, fold_of, asked)
    rows, notes = [], []
    for number, (train, test) in enumerate(splits):
        options = {"method": method, "params": params, "balance": balance, "seed": seed}
        if tune:
            options["params"] = search_params(X[train], truth[train], groups[train], **options)
        pipeline, found = fit_method(X[train], truth[train], groups[train], **options)
        notes += found
        probability[test] = pipeline.predict_proba(X[test])
        held = names[np.unique(member[test])].tolist()
        test = test[counted[test]]
        guess = probability[test].argmax(axis=1)
        counts = count_confusion(truth[test], guess, n_classes)
        row = {"fold": number, "groups": held, "n_train": len(train), "n_test": len(test), **summarize(counts)}
        ends = accuracy_interval(truth[test], guess, unit[test], n_classes, n=n_bootstrap, seed=seed)
        row["low"], row["high"] = ends
        if tune:
            row["params"] = options["params"].model_dump(mode="json")
        rows.append(row)
        if kept is not None:
            kept.append(pipeline)
    noise = find_suspects(
        _calibrate(probability, truth, fold_of, class_weights(truth, n_classes, balance != "none"))[1], truth
    )
    categories = {name: np.asarray(values)[counted] for name, values in (categories or {}).items()}
    probability, truth, groups, fold_of = probability[counted], truth[counted], groups[counted], fold_of[counted]
    member, unit = member[counted], unit[counted]
    predicted = probability.argmax(axis=1)
    confusion = count_confusion(truth, predicted, n_classes)
    low, high = accuracy_interval(truth, predicted, member, n_classes, n=n_bootstrap, seed=seed)
    weights = class_weights(truth, n_classes, balance != "none")
    calibration, calibrated = _calibrate(probability, truth, fold_of, weights)
    draws = draw_confusions(truth, predicted, groups, n_classes, seed=seed)
    return {
        "scheme": scheme,
        "method": method,
        "balance": balance,
        "n_cells": len(truth),
        "n_labels": len(y),
        "counted": note,
        "n_groups": len(np.unique(groups)),
        "chance": 1 / n_classes,
        "error": float(np.mean(predicted != truth)),
        **summarize(confusion),
        "balanced_accuracy_low": low,
        "balanced_accuracy_high": high,
        "classes": [str(name) for name in classes],
        "confusion": confusion.tolist(),
        "per_class": _class_table(confusion, classes, per_class, precision_recall(truth, calibrated, n_classes)),
        "folds": rows,
        "calibration": calibration,
        "sets": _test_sets(calibrated, truth, groups, fold_of, weights, coverage),
        "noise": noise,
        "subgroups": score_subgroups(truth, predicted, unit, n_classes, categories, n=n_bootstrap, seed=seed),
        "confusion_draws": np.round(draws, 5).tolist(),
        "warnings": sorted(set(notes)),
    }


def _counted_cells(truth, fold_of, asked):
    """Which cells figures are of, shape (N,) of bool, and a sentence on them where not all of the labels are alike."""
    every = np.ones(len(truth), bool)
    if asked is None or not np.any(asked):
        return every, ""
    chance = ~np.asarray(asked, bool)
    number = f"{np.count_nonzero(asked):,} of the {len(truth):,} labeled cells were asked for as the ones in doubt"
    for c in np.unique(truth):
        own = chance & (truth == c)
        if own.sum() < MIN_BY_CHANCE or len(np.unique(fold_of[own])) < 2:
            return every, (
                f"{number}, so figures are lower than those of all cells would be. Once {MIN_BY_CHANCE} cells of each class, in several "
                "folds, are labeled by chance, only these are counted."
            )
    return chance, f"{number}: they are learned from, and not counted here."


def check_labels(X, y, groups):
    """Check and convert the labeled cells.

    Parameters
    ----------
    X : array of float, shape (N, F) or (N, C, H, W)
    y, groups : array of str, shape (N,)

    Returns
    -------
    X : ndarray of float64, shape (N, F)
        Infinity as NaN. Crops as they came.
    y, groups : ndarray of str, shape (N,)

    Raises
    ------
    LabelError
        If a class or group is missing, or there are fewer than two classes.
    ValueError
        If the lengths differ.
    """
    X = np.asarray(X) if np.ndim(X) == 4 else np.asarray(X, dtype=float)
    if X.ndim not in (2, 4) or len(X) != len(y) or len(X) != len(groups):
        raise ValueError(
            f"Found {np.shape(X)} features, {len(y)} classes, {len(groups)} groups. Expected one of each per cell."
        )
    for name, values in (("class", y), ("group", groups)):
        if any(value is None or value != value or value == "" for value in values):
            raise LabelError(f"Some cells have no {name}. Leave them out.")
    y, groups = np.asarray(y).astype(str), np.asarray(groups).astype(str)
    if len(np.unique(y)) < 2:
        raise LabelError(f"Found the classes {sorted(set(y.tolist()))}. At least 2 are needed.")
    return X if X.ndim == 4 else np.where(np.isfinite(X), X, np.nan), y, groups


def _class_table(confusion, classes, per_class, curves):
    """Rows of `per_class`."""
    precision, recall, f1 = rates_of(confusion)
    return [
        {
            "class": str(name),
            "precision": _plain(precision[c]),
            "recall": _plain(recall[c]),
            "f1": _plain(f1[c]),
            "support": int(confusion[c].sum()),
            "false_positives": int(confusion[:, c].sum() - confusion[c, c]),
            "false_negatives": int(confusion[c].sum() - confusion[c, c]),
            "groups": per_class[str(name)],
            "average_precision": curves[c]["average_precision"],
            "curve": curves[c]["precision"],
        }
        for c, name in enumerate(classes)
    ]


def _calibrate(probability, truth, fold_of, weights):
    """What calibration brings, and the probabilities of each fold by the temperature of the others."""
    calibrated = np.empty_like(probability)
    for fold in np.unique(fold_of):
        own = fold_of == fold
        calibrated[own] = apply_temperature(
            probability[own], fit_temperature(probability[~own], truth[~own], weights[~own])
        )
    right = probability.argmax(axis=1) == truth
    before, after = probability.max(axis=1), calibrated.max(axis=1)
    return {
        "temperature": fit_temperature(probability, truth, weights),
        "brier": brier_score(calibrated, truth, weights),
        "brier_before": brier_score(probability, truth, weights),
        "expected_calibration_error": calibration_error(after, right, weights=weights),
        "expected_calibration_error_before": calibration_error(before, right, weights=weights),
        "reliability": reliability(after, right, weights=weights),
        "before": reliability(before, right, weights=weights),
    }, calibrated


def _test_sets(probability, truth, groups, fold_of, weights, coverage):
    """Limits of conformal sets, and what sets with the limits of the other folds are like."""
    inside = np.zeros(probability.shape, bool)
    for fold in np.unique(fold_of):
        own = fold_of == fold
        limits = set_thresholds(probability[~own], truth[~own], groups[~own], coverage=coverage)
        inside[own] = set_members(probability[own], limits)
    size = inside.sum(axis=1)
    share = lambda chosen: float(np.average(chosen, weights=weights))  # noqa: E731
    return {
        "coverage": coverage,
        "limits": set_thresholds(probability, truth, groups, coverage=coverage),
        "groups_needed": int(np.ceil(coverage / (1 - coverage) - 1e-9)),
        "covered": share(inside[np.arange(len(truth)), truth]),
        "single": share(size == 1),
        "empty": share(size == 0),
    }


def _plain(value):
    """A float, or None for NaN."""
    return float(value) if np.isfinite(value) else None
