"""Which space of profiles serves a screen better: replicates that find each other, treatments told apart on unseen plates.

A space is a set of columns that describe the same wells: measured features, the latents of an encoder. Two spaces are
compared treatment by treatment, or plate by plate, and one is called better only if the interval of the difference says so.
"""

import itertools
import math

import numpy as np
import pandas as pd

from plateloom.intervals import MIN_UNITS, interval_of

SCORES = ["Metadata_Treatment", "Metadata_Dose", "n_wells", "map", "expected", "beyond", "p", "q"]
MOST_REPLICATES = 50  # wells of a treatment and dose that look for each other
MOST_FOLDS = 20  # plates that are held out one at a time; of more as many parts
NULL_SIZE = 10_000
MIN_GROUPS = 20  # of wells of different treatments: with fewer p could not be 0.05
RESAMPLES = 5000
BLOCK = 4_000_000  # numbers in memory at a time


def treatment_keys(wells):
    """One text per well for what was put in, and how much of it; '' where it holds nothing that is known.

    Parameters
    ----------
    wells : DataFrame, shape (W, ...)
        `Metadata_Treatment`, and as far as known `Metadata_Dose` and `Metadata_Control`.

    Returns
    -------
    ndarray of str, shape (W,)

    Examples
    --------
    >>> treatment_keys(pd.DataFrame({"Metadata_Treatment": ["nuclearin", None], "Metadata_Dose": [0.3, np.nan]})).tolist()
    ['nuclearin 0.3', '']
    """
    doses = wells["Metadata_Dose"].astype(float) if "Metadata_Dose" in wells else pd.Series(np.nan, index=wells.index)
    empty = wells["Metadata_Control"] == "empty" if "Metadata_Control" in wells else pd.Series(False, index=wells.index)
    return np.array(
        [
            "" if nothing or pd.isna(name) else f"{name} {dose:g}" if math.isfinite(dose) else str(name)
            for name, dose, nothing in zip(wells["Metadata_Treatment"], doses, empty, strict=True)
        ],
        dtype=str,
    )


def score_retrieval(values, wells, *, null_size=NULL_SIZE, seed=0):
    """Measure how well the wells of a treatment find each other among the negative controls.

    Parameters
    ----------
    values : array of float, shape (W, F)
        Profiles; finite.
    wells : DataFrame, shape (W, ...)
        `Metadata_Plate`, `Metadata_Treatment`, `Metadata_Dose` and `Metadata_Control`.
    null_size, seed : int
        Random groups of wells that chance rests on, for each layout of replicates; fewer where layouts are very many.

    Returns
    -------
    scores : DataFrame
        One row per treatment and dose that has replicates: `Metadata_Treatment`, `Metadata_Dose`, `n_wells`, `map` (mean average
        precision in [0, 1]), `expected` (what chance gives), `beyond` (`map` - `expected`; NaN where chance is that of random
        rankings), `p`, `q` (corrected, Benjamini, Hochberg).
    replicates : {"other plates", "same plate"}
        Where replicates were looked for.

    Raises
    ------
    ValueError
        If no treatment has replicates, or no plate with them has negative controls.

    Notes
    -----
    Each well ranks, by cosine, its replicates on other plates and the negative controls of its own plate: what plates have in common
    within themselves counts against it. Only if no treatment is on two plates, replicates are those of the same plate. Average
    precision is that of copairs (Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2), but of wells as like as a control the control
    comes first.

    Chance is what wells of *different* treatments on the same plates give, in the same values. Random rankings would not do: profiles
    are centered on the very controls that are ranked, so wells in which nothing happened come behind them, the more so the more
    columns there are. A treatment takes part with at most as many wells as there are treatments, so that such groups exist; where
    there are fewer than `MIN_GROUPS` of them, chance is that of random rankings, and spaces should not be compared by it.
    """
    from scipy.stats import false_discovery_control

    table, groups, across = _replicates(wells)
    shown = set(table["plate"].iloc[np.concatenate(groups)])
    pool = np.flatnonzero(table["treated"] & table["plate"].isin(shown))
    ranking = _Ranking(np.asarray(values, float), table, pool, across)
    layouts = {}
    for group in groups:
        group = np.searchsorted(pool, group)
        if ranking.asked(group[None]).any():
            layouts.setdefault(ranking.layout(group), []).append(group)
    if not layouts:
        anywhere = table["control"].any()
        raise ValueError(f"no plate {'with replicates ' if anywhere else ''}has negative controls")
    random = np.random.default_rng(seed)
    size = min(null_size, max(1000, 20 * null_size // len(layouts)))
    scores = []
    for _, alike in sorted(layouts.items()):
        alike = np.stack(alike)
        reached, n_wells = ranking.score(alike), ranking.asked(alike).sum(axis=1)
        drawn = _exchange(alike, ranking, random, size)
        exchanged = len(drawn) >= MIN_GROUPS
        chance = np.sort(ranking.score(drawn) if exchanged else _random_rankings(alike[0], ranking, size, seed))
        p = (1 + len(chance) - np.searchsorted(chance, reached - 1e-6)) / (1 + len(chance))
        for members, n, score, likely in zip(alike, n_wells, reached, p, strict=True):
            first = wells.iloc[pool[members[0]]]
            beyond = score - chance.mean() if exchanged else math.nan
            scores.append(
                (first["Metadata_Treatment"], first["Metadata_Dose"], int(n), score, chance.mean(), beyond, likely)
            )
    scores = pd.DataFrame(scores, columns=SCORES[:-1])
    scores = scores.sort_values(["Metadata_Treatment", "Metadata_Dose"], ignore_index=True)
    scores["q"] = false_discovery_control(scores["p"])
    return scores, "other plates" if across else "same plate"


def _replicates(wells):
    """What is known of each well, the rows of each treatment and dose that has replicates, and whether these are on other plates."""
    table = pd.DataFrame(
        {
            "plate": wells["Metadata_Plate"].astype(str).to_numpy(),
            "name": wells["Metadata_Treatment"].fillna("").astype(str).to_numpy(),
            "treatment": treatment_keys(wells),
            "control": (wells["Metadata_Control"] == "negative").to_numpy(),
        }
    )
    table["treated"] = ~table["control"] & (table["treatment"] != "")
    treated = table[table["treated"]]
    plates = treated.groupby("treatment")["plate"]
    across = bool((plates.nunique() > 1).any())
    enough = treated[plates.transform("nunique" if across else "size") > 1]
    if not len(enough):
        raise ValueError("no treatment has replicates")
    names = treated["name"].nunique()
    most = min(MOST_REPLICATES, names) if names >= MIN_UNITS else MOST_REPLICATES
    rows = [np.asarray(rows) for _, rows in sorted(enough.groupby("treatment").groups.items())]
    plates = table["plate"].to_numpy()
    return table, [_thin(own, plates[own], most) for own in rows], across


class _Ranking:
    """Average precision of any group of treated wells, as if they were replicates.

    Parameters
    ----------
    values : array of float, shape (W, F)
    table : DataFrame, shape (W, ...)
    pool : array of int, shape (T,)
        Rows of the treated wells; groups are places in it.
    across : bool
        Replicates are those on other plates.
    """

    def __init__(self, values, table, pool, across):
        self.across = across
        names, self.plates = np.unique(table["plate"].to_numpy()[pool], return_inverse=True)
        _, self.names = np.unique(table["name"].to_numpy()[pool], return_inverse=True)
        of_control = table["plate"].where(table["control"])
        controls = [np.flatnonzero(of_control == name) for name in names]
        self.n_controls = np.array([len(rows) for rows in controls])[self.plates]
        self.unit = _unit(values[pool])
        self.beside = np.full((len(pool), self.n_controls.max()), -np.inf)  # how like the controls of the plate are
        for plate, rows in enumerate(controls):
            own = np.flatnonzero(self.plates == plate)
            self.beside[own, : len(rows)] = self.unit[own] @ _unit(values[rows]).T

    def sought(self, groups):
        """Which wells of a group each of its wells seeks, of groups (G, N) an array of bool (G, N, N)."""
        if self.across:
            return self.plates[groups][:, :, None] != self.plates[groups][:, None, :]
        return np.broadcast_to(~np.eye(groups.shape[1], dtype=bool), (*groups.shape, groups.shape[1]))

    def asked(self, groups):
        """Which wells of groups (G, N) have something to seek, and controls to tell it from."""
        return self.sought(groups).any(axis=2) & (self.n_controls[groups] > 0)

    def layout(self, group):
        """What average precision by chance depends on, per well: how many it seeks, and controls beside them."""
        sought = self.sought(group[None])[0].sum(axis=1)
        return tuple(sorted(zip(sought.tolist(), self.n_controls[group].tolist(), strict=True)))

    def score(self, groups):
        """Mean average precision of groups (G, N), shape (G,)."""
        found, n = np.empty(len(groups)), groups.shape[1]
        step = max(1, BLOCK // (n * max(self.unit.shape[1], n * self.beside.shape[1])))
        for start in range(0, len(groups), step):
            some = groups[start : start + step]
            alike = self.unit[some] @ self.unit[some].transpose(0, 2, 1)
            ahead = (self.beside[some][:, :, None, :] >= alike[..., None]).sum(axis=3).astype(float)
            sought, asked = self.sought(some), self.asked(some)
            ahead = np.sort(np.where(sought, ahead, np.inf), axis=2)
            rank = np.arange(1, n + 1)
            precision = (rank / (rank + ahead)).sum(axis=2) / np.maximum(sought.sum(axis=2), 1)
            found[start : start + step] = np.where(asked, precision, 0).sum(axis=1) / asked.sum(axis=1)
        return found


def _unit(values):
    """Rows of length 1; a well that is the median of all controls stays 0."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)


def _exchange(groups, ranking, random, size):
    """Up to so many groups, each once, of wells of different treatments, on the plates of groups (G, N)."""
    order, count = np.argsort(ranking.plates, kind="stable"), np.bincount(ranking.plates)
    start = np.cumsum(count) - count

    def draw(plates):
        return order[start[plates] + (random.random(plates.shape) * count[plates]).astype(int)]

    plates = ranking.plates[groups[random.integers(len(groups), size=size)]]
    drawn = draw(plates)
    left = np.arange(size)  # groups with two wells of a treatment
    for _ in range(100):
        again = _repeated(ranking.names[drawn[left]])
        left = left[again.any(axis=1)]
        if not len(left):
            break
        again = again[again.any(axis=1)]
        drawn[left] = np.where(again, draw(plates[left]), drawn[left])
    return np.unique(drawn[~_repeated(ranking.names[drawn]).any(axis=1)], axis=0)


def _repeated(names):
    """Whether an entry (G, N) is the same as one before it in its row."""
    order = np.argsort(names, axis=1, kind="stable")
    ordered = np.take_along_axis(names, order, axis=1)
    same = np.zeros(names.shape, bool)
    np.put_along_axis(same, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return same


def _random_rankings(group, ranking, size, seed):
    """Mean average precision of random rankings for the layout of a group (N,)."""
    from copairs.compute import random_ap

    pairs = [(n, n + controls) for n, controls in ranking.layout(group) if n and controls]
    return np.mean([random_ap(size, *pair, seed=seed + i) for i, pair in enumerate(pairs)], axis=0)


def _thin(rows, plates, most):
    """Up to so many of these rows, evenly over plates."""
    turn = pd.Series(plates).groupby(plates).cumcount().to_numpy()  # the first well of each plate, then the second
    order = np.argsort(turn, kind="stable")[: max(most, (turn == 0).sum())]
    return np.sort(np.asarray(rows)[order[np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)]])


def standardize(values):
    """Columns with mean 0 and SD 1 over all wells, whichever plate they are on; constant ones are 0.

    Parameters
    ----------
    values : array of float, shape (W, F)

    Returns
    -------
    ndarray of float64, shape (W, F)

    Examples
    --------
    >>> standardize([[1.0, 5.0], [3.0, 5.0]]).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    values = np.asarray(values, float)
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)


def score_classes(values, treatments, plates):
    """Measure how well treatments are told apart on plates that were not learned from.

    Parameters
    ----------
    values : array of float, shape (W, F)
        Profiles; finite.
    treatments : array of str, shape (W,)
        The class of each well; '' takes no part. Classes on a single plate are left out.
    plates : array of str, shape (W,)

    Returns
    -------
    scores : Series of float, by plate
        Balanced accuracy of the plate's wells: the mean over its classes of the share that is recognized.
    facts : dict
        `n_wells`, `n_classes`, `chance` (1 / number of classes that a plate's wells are told from, mean over plates), `n_left_out`
        (classes on a single plate), `n_unseen` (wells that are not scored, since all plates of their class were held out at once).

    Raises
    ------
    ValueError
        If there are fewer than two plates, or two classes on two plates or more.

    Notes
    -----
    Linear discriminants, with one covariance within all classes that is shrunk as far as there are too few wells for it (Ledoit,
    Wolf 2004): nothing to tune, quick with hundreds of classes, and fair to spaces of different dimension. Each plate is held out in turn (of more
    than 20 plates in as many parts, plates that carry the same treatments in different ones as far as possible).
    """
    from sklearn.preprocessing import StandardScaler

    values, treatments, plates = np.asarray(values, float), np.asarray(treatments, str), np.asarray(plates, str)
    n_plates = len(np.unique(plates[treatments != ""]))
    if n_plates < 2:
        raise ValueError(f"{n_plates} plate cannot be held out, at least 2 are needed")
    known = treatments != ""
    pairs = np.unique(np.stack([treatments[known], plates[known]]), axis=1)
    names, count = np.unique(pairs[0], return_counts=True)
    shared = names[count >= 2]
    if len(shared) < 2:
        raise ValueError(f"{len(shared)} treatments are on two plates or more, at least 2 are needed")
    rows = np.isin(treatments, shared)
    X, y, plates = values[rows], treatments[rows], plates[rows]
    right, seen, chance = np.zeros(len(y), bool), np.zeros(len(y), bool), np.empty(len(y))
    part = _deal_plates(y, plates)
    for k in np.unique(part):
        train, test = part != k, part == k
        scaler = StandardScaler().fit(X[train])
        right[test] = _nearest_class(scaler.transform(X[train]), y[train], scaler.transform(X[test])) == y[test]
        seen[test] = np.isin(y[test], y[train])
        chance[test] = 1 / len(np.unique(y[train]))
    scored = pd.DataFrame({"plate": plates, "class": y, "right": right, "chance": chance})[seen]
    by_class = scored.groupby(["plate", "class"])[["right", "chance"]].mean()
    by_plate = by_class.groupby(level="plate").mean()
    facts = {
        "n_wells": int(seen.sum()),
        "n_classes": len(shared),
        "chance": float(by_plate["chance"].mean()),
        "n_left_out": len(names) - len(shared),
        "n_unseen": int((~seen).sum()),
    }
    return by_plate["right"], facts


def _deal_plates(classes, plates):
    """The part (W,) that each well's plate is held out with: one each, of many plates the one whose plates share least with it."""
    names, of_plate = np.unique(plates, return_inverse=True)
    if len(names) <= MOST_FOLDS:
        return of_plate
    kinds, of_class = np.unique(classes, return_inverse=True)
    has = np.zeros((len(names), len(kinds)))
    has[of_plate, of_class] = 1
    has /= has.sum(axis=0)  # a class that is everywhere matters little
    dealt, held, size = np.empty(len(names), int), np.zeros((MOST_FOLDS, len(kinds))), np.zeros(MOST_FOLDS)
    for i, row in enumerate(has):
        shared = (held @ (row > 0)).round(9)
        dealt[i] = np.lexsort((size, shared))[0]
        held[dealt[i]] += row
        size[dealt[i]] += 1
    return dealt[of_plate]


def _nearest_class(X, y, new):
    """Class of the nearest mean, in units of the spread within classes; equal priors."""
    from sklearn.covariance import ledoit_wolf

    names, member = np.unique(y, return_inverse=True)
    means = np.stack([X[member == k].mean(axis=0) for k in range(len(names))])
    within = X - means[member]
    if np.abs(within).max() > 0:
        weights = np.linalg.solve(ledoit_wolf(within, assume_centered=True)[0], means.T)
    else:  # one well of each class
        weights = means.T
    return names[(new @ weights - (means * weights.T).sum(axis=1) / 2).argmax(axis=1)]


def interval_of_mean(scores, *, n_resamples=RESAMPLES, confidence=0.95, seed=0):
    """Mean of one score per treatment or plate, with its interval over other treatments or plates of the kind.

    Parameters
    ----------
    scores : array of float, shape (U,)
    n_resamples : int
    confidence : float in (0, 1)
    seed : int

    Returns
    -------
    mean, low, high : float
        NaN without scores; no interval (NaN) with fewer than `MIN_UNITS`.

    Notes
    -----
    A bootstrap, see `plateloom.intervals.interval_of`.
    """
    scores = np.asarray(scores, float)
    n = len(scores)
    if not n:
        return (math.nan,) * 3
    if n < MIN_UNITS:
        return float(scores.mean()), math.nan, math.nan
    random, step = np.random.default_rng(seed), max(1, BLOCK // n)
    sizes = [min(step, n_resamples - start) for start in range(0, n_resamples, step)]
    drawn = np.concatenate([random.multinomial(n, np.full(n, 1 / n), size=size) @ scores / n for size in sizes])
    return float(scores.mean()), *interval_of(drawn, n, confidence=confidence)


def compare_spaces(scores, *, unit="treatments", seed=0):
    """Compare spaces two by two on the same treatments or plates.

    Parameters
    ----------
    scores : dict of str to Series of float
        Per space one score per treatment or plate, by its name; larger is better. Names that only one of two spaces has take no part.
    unit : str
        What they are, for the reason.
    seed : int

    Returns
    -------
    list of dict
        Per pair of spaces `first`, `second`, `n`, `difference` (of the means, first - second) with its 95 % interval `low`, `high`
        (see `interval_of_mean`), `better` (the name of the better space, '' if it cannot be said) and `reason` why not, else ''.

    Examples
    --------
    >>> few = {"features": pd.Series({"a": 0.9, "b": 0.8}), "latent": pd.Series({"a": 0.5, "b": 0.4})}
    >>> compare_spaces(few)[0]["reason"]
    '2 treatments in common, 5 needed'
    """
    rows = []
    for first, second in itertools.combinations(scores, 2):
        shared = scores[first].index.intersection(scores[second].index)
        differences = scores[first][shared].to_numpy() - scores[second][shared].to_numpy()
        mean, low, high = interval_of_mean(differences, seed=seed)
        row = {"first": first, "second": second, "n": len(shared), "difference": mean, "low": low, "high": high}
        row |= {"better": "", "reason": ""}
        if len(shared) < MIN_UNITS:
            row["reason"] = f"{len(shared)} {unit} in common, {MIN_UNITS} needed"
        elif low > 0 or high < 0:
            row["better"] = first if low > 0 else second
        else:
            row["reason"] = "the interval holds 0"
        rows.append(row)
    return rows


def per_treatment(scores, figure="map"):
    """Mean over the doses of each treatment, of a table from `score_retrieval`.

    Parameters
    ----------
    scores : DataFrame
    figure : {"map", "beyond"}
        What is averaged. Compare spaces by `beyond`: how low mAP is by chance differs between them.

    Returns
    -------
    Series of float, by treatment
        Without treatments that have no such figure.
    """
    return scores.groupby("Metadata_Treatment", sort=True)[figure].mean().dropna()
