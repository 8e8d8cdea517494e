"""Whether the controls of a plate look like those of the plates that were learned from, and how far a classifier carries.

A classifier learns what cells look like under one staining, one microscope, one week. When that changes, its figures are
those of another assay. Control wells hold the same on every plate, so a change in them is no biology of a treatment.
"""

import numpy as np
import pandas as pd

from plateloom.classification.fitting import fit_method
from plateloom.classification.scores import accuracy_interval, count_confusion, summarize
from plateloom.classification.splits import split_groups

MIN_WELLS = 3  # of a plate, and plates or batches to compare it with: fewer tell no spread
MOST_WELLS = 64  # of other plates that the classifier of two samples is given
GRADED_CELLS = 4000
GRADES = ("same well", "other well", "other plate", "other batch")
NAMED = 5
MOST_TIED = 0.5  # of the wells with one and the same value of a feature: beyond, it stands at a bound and has no spread to speak of
WITHOUT_CHANNEL = {"AreaShape", "Neighbors", "Number"}  # families whose columns end in parameters
# Parameters behind a channel's name, which may be a number, too.
BEHIND_CHANNELS = {"Texture": 3, "RadialDistribution": 1}
MOST_BORROWED = 4  # times its own degrees of freedom that a feature's variance may borrow: features are not independent


def find_shift(values, plates, *, batches=None, reference=None, alpha=0.02, seed=0):
    """Compare the control wells of each plate with those of the plates that were learned from, or of all other plates.

    Parameters
    ----------
    values : DataFrame of float, shape (W, F)
        Features of control wells that hold the same (medians over their cells), *not* normalized plate by plate.
    plates : array of str, shape (W,)
    batches : array of str, shape (W,), optional
        Plates stained together; '' where not known. With batches known and at least 3 others, plates are compared with
        other batches, and it is batches that must differ less from each other: plates of one night shift together.
    reference : collection of str, optional
        Plates that were learned from. They alone are what any plate is compared with (one of them with the others of them),
        however many others have shifted alike. Default, or if fewer than 3 of them have the wells needed: all plates.
    alpha : float in (0, 1)
        False discoveries among the kinds of features of a plate that are said to have shifted [share]. On a screen without
        any shift no more than this share of plates is expected to be alarmed.
    seed : int

    Returns
    -------
    list of dict
        Per plate, in order of name, plain numbers: `plate`, `n_wells`, `unit` ('plate' or 'batch'), `n_others` and `learned`
        (are these the reference?), what it was compared with, `auc` with its 95 % interval `low`, `high` (see `tell_apart`),
        `n_features`, `n_kinds` (see `kind_of`), `n_shifted` of these, `shifted` (up to 5 rows of `kind`, its surest `feature`
        with `change`: difference in units of how the others differ, and `q`; the surest first), `alarm`, and `reason` why it
        cannot be judged, else ''. Where the reference is too small it is given, too: an alarm among all plates holds, none
        does not say that the plate is like those that were learned from.

    Notes
    -----
    Two questions, and an alarm takes both. Can a classifier tell the plate's wells from the others', with the lower end of its
    interval above 0.5? On most plates it can, since no two plates are the same. So: does any feature differ by more than the
    other plates (or batches) differ among each other? Per feature, the plate's median is compared with those of the others
    by Student's t for one more observation. With few plates their variance is hardly known, so features borrow from each
    other as far as their variances (in units of that among wells) are alike (Smyth 2004, doi:10.2202/1544-6115.1027); it
    is never taken for less than what the spread of the wells alone gives. A feature with one and the same value in most wells is
    left out: at a bound, as Costes' coefficients at 1, it hardly varies until a plate comes off it. Hundreds of features of a few kinds say much the
    same, so those of a kind are tested together (Simes 1986), and the kinds are corrected (Benjamini, Hochberg 1995).
    """
    from scipy.stats import false_discovery_control, t

    values, plates = values.astype(float), np.asarray(plates).astype(str)
    batches = np.full(len(plates), "") if batches is None else np.asarray(batches).astype(str)
    finite = np.isfinite(values.to_numpy())
    usable = pd.Series(plates).groupby(plates).transform("size").to_numpy() >= MIN_WELLS
    learned = usable if reference is None else usable & np.isin(plates, list(reference))
    n_learned = len(np.unique(plates[learned]))
    short = reference is not None and n_learned < MIN_WELLS
    pool = usable if short else learned
    kept = finite.all(axis=0)
    if pool.any():
        kept &= _share_tied(values.to_numpy()[pool]) <= MOST_TIED
    X, names = values.to_numpy()[:, kept], np.array(values.columns)[kept]
    kinds, of_kind = np.unique([kind_of(name) for name in names], return_inverse=True)
    found, known = [], {}
    for plate in np.unique(plates):
        own = plates == plate
        unit, member = _others(plates, batches, own, pool)
        others = np.unique(member[member != ""])
        row = {"plate": str(plate), "n_wells": int(own.sum()), "unit": unit, "n_others": len(others)}
        row["learned"] = reference is not None and not short
        row |= dict.fromkeys(("auc", "low", "high")) | {"n_features": int(kept.sum()), "n_kinds": len(kinds)}
        row |= {"n_shifted": 0, "shifted": [], "alarm": False, "reason": ""}
        if own.sum() < MIN_WELLS:
            noun = "well" if own.sum() == 1 else "wells"
            row["reason"] = f"{own.sum()} control {noun} with cells, {MIN_WELLS} needed"
        elif len(others) < MIN_WELLS:
            row["reason"] = _too_few(len(others), "other ", row["learned"])
        elif not kept.any():
            row["reason"] = "no feature has a value in every control well"
        if row["reason"]:
            found.append(row)
            continue
        if short:
            row["reason"] = f"{_too_few(n_learned, '', True)}; compared with all others instead"
        chosen = own | _evenly(member, MOST_WELLS, seed)
        row["auc"], row["low"], row["high"] = tell_apart(X[chosen], own[chosen], np.flatnonzero(chosen), seed=seed)
        for name in others:
            if (unit, name) not in known:
                rows = X[member == name]
                squares = ((rows - rows.mean(axis=0)) ** 2).sum(axis=0)
                known[unit, name] = np.median(rows, axis=0), squares, len(rows)
        level, squares, wells = map(np.array, zip(*(known[unit, name] for name in others), strict=True))
        spread, free = _spread(level, squares, wells, own.sum())
        difference = np.median(X[own], axis=0) - level.mean(axis=0)
        p = 2 * t.sf(np.abs(difference) / spread, free)
        q = false_discovery_control([_simes(p[of_kind == k]) for k in range(len(kinds))])
        row["n_shifted"] = int((q <= alpha).sum())
        for k in np.argsort(q, kind="stable")[: min(NAMED, row["n_shifted"])]:
            own_kind = np.flatnonzero(of_kind == k)
            i = own_kind[p[own_kind].argmin()]
            surest = {"kind": str(kinds[k]), "feature": str(names[i]), "change": float(difference[i] / spread[i])}
            row["shifted"].append(surest | {"q": float(q[k])})
        row["alarm"] = bool(row["n_shifted"] and row["low"] > 0.5)
        found.append(row)
    return found


def kind_of(feature):
    """What a feature is of: its family and its channels, in any compartment.

    Examples
    --------
    >>> kind_of("Nuclei_Texture_Contrast_DNA_3_00_256"), kind_of("Cells_AreaShape_Zernike_4_0"), kind_of("Cells_Correlation_K_ER_488")
    ('Texture DNA', 'AreaShape', 'Correlation ER 488')
    """
    words = feature.split("_")
    family, rest = (words[1:] or [feature])[0], words[3:]
    if family in BEHIND_CHANNELS:
        rest = rest[: -(2 if words[2].startswith("Zernike") else BEHIND_CHANNELS[family])]
    elif family in WITHOUT_CHANNEL:
        rest = [word for word in rest if not word[:1].isdigit()]
    return " ".join([family, *rest])


def tell_apart(X, new, wells, *, folds=5, n_bootstrap=500, seed=0):
    """Test two samples by whether a classifier can tell them apart in wells that it has not seen.

    Parameters
    ----------
    X : array of float, shape (N, F)
        Cells, or one row per well; finite.
    new : array of bool, shape (N,)
        Which of the two samples; all rows of a well are of one.
    wells : array, shape (N,)
        Well of each row, unique over plates.
    folds, n_bootstrap, seed : int

    Returns
    -------
    auc, low, high : float
        Probability that a new well gets a higher score than another one (mean log odds of its rows by logistic
        regression that has not seen it; pooled over the folds), with its 95 % interval over resampled wells of either
        sample. About 0.5: nothing tells them apart.

    Raises
    ------
    ValueError
        If one of the samples has fewer than two wells.

    Notes
    -----
    Lopez-Paz, Oquab 2017, arXiv:1610.06545. With a handful of wells and all told apart the interval is [1, 1]: it speaks of
    the wells at hand only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, new = np.asarray(X, float), np.asarray(new, bool)
    _, first, member = np.unique(wells, return_index=True, return_inverse=True)
    side = new[first]
    least = min(side.sum(), (~side).sum())
    if least < 2:
        raise ValueError(f"One of the samples has {least} wells. At least 2 are needed.")
    names, score = member.astype(str), np.empty(len(X))
    for train, test in split_groups(new.astype(int), names, folds=int(min(folds, least)), seed=seed):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced"))
        score[test] = model.fit(X[train], new[train]).decision_function(X[test])
    score = np.bincount(member, score) / np.bincount(member)
    above = np.sign(score[side][:, None] - score[~side][None]) / 2 + 0.5
    random = np.random.default_rng(seed)
    one, other = (random.multinomial(n, np.full(n, 1 / n), size=n_bootstrap) / n for n in above.shape)
    low, high = np.quantile(((one @ above) * other).sum(axis=1), [0.025, 0.975]).tolist()
    return float(above.mean()), low, high


def _share_tied(values):
    """Share of the wells that have the most frequent value of each feature, shape (F,)."""
    ordered = np.sort(values, axis=0)
    longest, run = np.ones(ordered.shape[1], int), np.ones(ordered.shape[1], int)
    for same in ordered[1:] == ordered[:-1]:
        run = np.where(same, run + 1, 1)
        longest = np.maximum(longest, run)
    return longest / len(values)


def _others(plates, batches, own, pool):
    """What a plate is compared with in the pool: the unit, and the unit of each well ('': takes no part), shape (W,)."""
    usable = pool & ~own
    elsewhere = usable & (batches != "") & (batches != (batches[own][0] or ""))
    if batches[own][0] and len(np.unique(batches[elsewhere])) >= MIN_WELLS:
        return "batch", np.where(elsewhere, batches, "")
    return "plate", np.where(usable, plates, "")


def _too_few(number, other, learned):
    """``only 2 other plates have the 3 control wells needed; it takes 3 such plates``."""
    noun, verb = ("plates", "have") if number > 1 else ("plate", "has")
    which = f"{f'only {number}' if number else 'no'} {other}{noun}{' learned from' * learned}"
    return f"{which} {verb} the {MIN_WELLS} control wells needed; it takes {MIN_WELLS} such plates"


def _spread(level, squares, wells, n):
    """Standard error of the median of one more plate against the mean of others, shape (F,), and its degrees of freedom."""
    others = len(wells)
    within = np.maximum(squares.sum(axis=0) / (wells.sum() - others), np.finfo(float).tiny)
    # of a median of wells: pi / 2 times the variance of their mean
    noise = np.pi / 2 * (1 / n + (1 / wells).sum() / others**2)
    between, free = _shrink(level.var(axis=0, ddof=1) / within, others - 1)
    return np.sqrt(within * np.maximum(between * (1 + 1 / others), noise)), free


def _shrink(variance, free):
    """Variances with what those of all features have in common, and their degrees of freedom (Smyth 2004)."""
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    known = variance > 0
    if known.sum() < MIN_WELLS:
        return variance, free
    level = np.log(variance[known]) - digamma(free / 2) + np.log(free / 2)
    excess = level.var(ddof=1) - polygamma(1, free / 2)
    most = MOST_BORROWED * free
    prior = most
    if excess > polygamma(1, most / 2):
        prior = 2 * brentq(lambda half: polygamma(1, half) - excess, 1e-3, most / 2)
    common = np.exp(level.mean() + digamma(prior / 2) - np.log(prior / 2))
    return (prior * common + free * variance) / (prior + free), prior + free


def _simes(p):
    """One p value of several that depend on each other."""
    return float((np.sort(p) * len(p) / np.arange(1, len(p) + 1)).min())


def _evenly(member, most, seed):
    """Up to `most` wells that take part, as evenly over their units as they allow, shape (W,) of bool."""
    random, chosen = np.random.default_rng(seed), np.zeros(len(member), bool)
    rows = random.permutation(np.flatnonzero(member != ""))
    turn = pd.Series(member[rows]).groupby(member[rows]).cumcount().to_numpy()
    chosen[rows[np.argsort(turn, kind="stable")][:most]] = True
    return chosen


def grade_transfer(
    X, y, wells, plates, batches, *, method, params, balance="weights", folds=5, n_bootstrap=500, seed=0, kept=None
):
    """Measure how a classifier fares the farther the tested cells are from those that it has learned from.

    Parameters
    ----------
    X : array of float, shape (N, F)
        Features of labeled cells; NaN is imputed.
    y : array of str, shape (N,)
        Their classes.
    wells, plates, batches : array of str, shape (N,)
        Where they lie; wells with their plate in front (`P1/A01`), a batch is '' where it is not known.
    method, params, balance
        As for `plateloom.classification.evaluation.evaluate`.
    folds : int
        Parts for cells and wells.
    n_bootstrap, seed : int
    kept : list, optional
        Takes, of 'other plate', each fitted pipeline with the plates that it has not seen: ``(pipeline, {"groups": plates})``.

    Returns
    -------
    list of dict
        Per step of `GRADES`: `tested_on`, `balanced_accuracy` with its 95 % interval `low`, `high` over resampled wells, of the
        last two steps over plates and batches (None where a class is in fewer than 5), `cells`, and `reason` why it cannot be told, else ''. All from the same cells, up to 4,000, drawn evenly over the wells.

    Notes
    -----
    'same well' splits by cell, and so tests on cells whose neighbors were learned from: it is no measure of a classifier,
    but where it is much better than 'other well', wells are told apart instead of classes. A step down from there to
    'other plate' is the effect of plates, a further one that of batches.
    """
    from sklearn.model_selection import StratifiedKFold

    X, y, wells, plates, batches = (np.asarray(one) for one in (X, y, wells, plates, batches))
    rows = np.flatnonzero(_evenly(wells, GRADED_CELLS, seed))
    X, wells, plates, batches = X[rows], wells[rows], plates[rows], batches[rows]
    classes, truth = np.unique(y[rows], return_inverse=True)

    def by_cell():
        least = np.bincount(truth).min()
        if least < 2:
            raise ValueError("a class has a single cell")
        splitter = StratifiedKFold(int(min(folds, least)), shuffle=True, random_state=seed)
        return list(splitter.split(X, truth))

    def by(scheme, groups):
        if (groups == "").any():
            raise ValueError(f"the {scheme} of some cells is not known")
        return split_groups(truth, groups, folds=folds, scheme=scheme, seed=seed)

    splits = {
        "same well": by_cell,
        "other well": lambda: by("well", wells),
        "other plate": lambda: by("plate", plates),
        "other batch": lambda: by("batch", batches),
    }
    units = {"other plate": plates, "other batch": batches}
    found = []
    for grade in GRADES:
        row = {"tested_on": grade} | dict.fromkeys(("balanced_accuracy", "low", "high")) | {"cells": 0, "reason": ""}
        try:
            predicted, fitted = np.empty_like(truth), []
            for train, test in splits[grade]():
                options = {"method": method, "params": params, "balance": balance, "seed": seed}
                pipeline, _ = fit_method(X[train], truth[train], wells[train], **options)
                predicted[test] = pipeline.predict(X[test])
                fitted.append((pipeline, {"groups": np.unique(plates[test]).tolist()}))
        except ValueError as error:
            found.append(row | {"reason": str(error)})
            continue
        row |= {"cells": len(truth)} | {
            "balanced_accuracy": summarize(count_confusion(truth, predicted, len(classes)))["balanced_accuracy"]
        }
        member = np.unique(units.get(grade, wells), return_inverse=True)[1]
        ends = accuracy_interval(truth, predicted, member, len(classes), n=n_bootstrap, seed=seed)
        row["low"], row["high"] = ends
        if kept is not None and grade == "other plate":
            kept += fitted
        found.append(row)
    return found


def name_others(row):
    """What a row of `find_shift` compares its plate with: ``1 other plate``, ``4 batches learned from``."""
    nouns = ("batch", "batches") if row["unit"] == "batch" else ("plate", "plates")
    noun = nouns[row["n_others"] != 1]
    return f"{row['n_others']} {noun} learned from" if row.get("learned") else f"{row['n_others']} other {noun}"


def shift_text(row):
    """What a plate's page says of an alarm of `find_shift`; empty without one.

    Parameters
    ----------
    row : dict

    Returns
    -------
    str
    """
    if not row["alarm"]:
        return ""
    named = ", ".join(one["kind"] for one in row["shifted"])
    others = name_others(row)
    return (
        f"Its negative controls are unlike those of {others}: {row['n_shifted']} of {row['n_kinds']} kinds of "
        f"features differ by more than these differ among each other, first of all {named}. What was learned elsewhere may not hold here."
    )
