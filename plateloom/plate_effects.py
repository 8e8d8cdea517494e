"""Effects of the position on a plate: edge against inner wells, rows, columns, and a drift from the first well to the last.

What grows in a well differs by treatment, and a layout often puts treatments in rows and columns. So wells are compared
only with wells that hold the same, and a test asks how often an effect as large arises when the values of such wells
change places.
"""

import numpy as np
import pandas as pd
from scipy import stats

from plateloom.wells import parse_well, plate_format, row_name

EFFECTS = ("edge", "drift", "rows", "columns")
QUANTITIES = {  # what is measured -> how less and more of it is said, and the smallest change that is worth a word
    "cells": ("fewer cells", "more cells", 0.1),
    "background": ("less background", "more background", 0.1),
    "focus": ("less focus", "more focus", 0.2),
}
MIN_WELLS = 16  # that can be compared, of a plate on which effects are looked for
MIN_GROUP = 3  # wells of a row, a column, the edge or the inside
BY_TIME, BY_PLACE = "as imaged", "row by row"  # what the first well and the last are
_SEED = 0


def find_effects(wells, values, *, alpha=0.02, permutations=None):
    """Look for effects of the position on a plate.

    Parameters
    ----------
    wells : DataFrame, W rows
        ``Metadata_Well``, and as far as known ``Metadata_Treatment``, ``Metadata_Dose`` and ``Metadata_Control``. Wells that
        are declared empty are left out. With ``Seconds`` (time of imaging [s], NaN: not known) wells drift in that order if
        all that have a value have a time and most another one, else row by row.
    values : DataFrame, W rows, the index of `wells`
        One column per metric, named by a key of `QUANTITIES` and, if there are several, the channel: ``background DNA``.
        Positive numbers; NaN where there is none.
    alpha : float in (0, 1)
        False discoveries among the effects of a plate that are said to be found [share].
    permutations : int, optional
        Default: so many that an effect can be found among all that are looked for.

    Returns
    -------
    DataFrame
        One row per metric and effect that could be looked for: ``metric``, ``effect`` (of `EFFECTS`), ``where`` (the row or
        column that differs most; of a drift the order of wells, `BY_TIME` or `BY_PLACE`), ``size`` (change relative to wells
        that hold the same; of a drift from the first well to the last), ``p``, ``q`` (float), ``found`` (bool) and ``text``
        (in words). Without rows if nothing can be compared.

    Notes
    -----
    Wells that hold the same have treatment, dose and control in common. Treatments that are on one well only are taken for
    alike, as in a primary screen, where most do nothing; wells of a dose series without replicates are left out. Values are
    divided by the median of such a group, and ranked. The tests are permutation tests within the groups, of the sum of the
    ranks on the edge, of their products with the order, and of the largest sum of a row and of a column. An effect that shows
    (p ≤ 0.05) is removed before the next one is looked for, in the order of `EFFECTS`, so that two dim outer columns are
    told once. All tests of a plate are corrected together (Benjamini, Hochberg 1995). Sizes are medians: of edge wells
    against the inner wells of their group, Theil and Sen's slope, and Tukey's median polish.
    """
    names = list(wells["Metadata_Well"])
    places = np.array([parse_well(name) for name in names]).reshape(-1, 2)
    groups = _groups(wells)
    seconds = wells["Seconds"].to_numpy(float) if "Seconds" in wells else np.full(len(wells), np.nan)
    permutations = permutations or round(4 * len(values.columns) * len(EFFECTS) / alpha)
    found, shuffled = [], {}
    for metric in values.columns:
        level, used = values[metric].to_numpy(float), _comparable(values[metric].to_numpy(float), groups)
        if used.sum() < MIN_WELLS:
            continue
        if (key := used.tobytes()) not in shuffled:
            shuffled[key] = _shuffle(groups[used], permutations)
        of_used = (level[used], groups[used], places[used], seconds[used])
        found += _metric_effects(metric, *of_used, plate_format(names), shuffled[key])
    columns = ["metric", "effect", "where", "size", "p"]
    table = pd.DataFrame(found, columns=columns)
    table["q"] = stats.false_discovery_control(table["p"]) if len(table) else table["p"]
    least = [QUANTITIES[metric.split(" ")[0]][2] for metric in table["metric"]]
    table["found"] = (table["q"] <= alpha) & (table["size"].abs() >= np.array(least, float))
    table["text"] = [_words(*row) for row in table[columns[:4]].itertuples(index=False)]
    return table


def _groups(wells):
    """Number of the group of wells that hold the same, per well; -1 where a well is compared with none."""
    keys = ["Metadata_Control", "Metadata_Treatment", "Metadata_Dose"]
    known = wells.reindex(columns=keys)
    known[keys[:2]] = known[keys[:2]].fillna("")
    known[keys[2]] = known[keys[2]].astype(float)
    group = known.groupby(keys, dropna=False, sort=False)
    single = (known["Metadata_Treatment"] != "") & (known["Metadata_Control"] == "")
    single &= known.groupby(keys[:2])["Metadata_Treatment"].transform("size") == 1
    number = np.array(group.ngroup())
    number[single] = number.max(initial=0) + 1
    number[known["Metadata_Control"] == "empty"] = -1
    return number


def _comparable(level, groups):
    """Which wells have a value and another one to be compared with."""
    used = np.isfinite(level) & (groups >= 0)
    for group in np.unique(groups[used]):
        members = used & (groups == group)
        if members.sum() < 2 or not np.median(level[members]) > 0:
            used &= ~members
    return used


def _metric_effects(metric, level, groups, places, seconds, shape, shuffled):
    """Rows of the table for one metric."""
    on_edge = ((places == 0) | (places == np.array(shape) - 1)).any(1)
    found = []

    edge = on_edge[:, None].astype(float)
    compared = [group for group in np.unique(groups) if 0 < on_edge[groups == group].mean() < 1]
    within = np.isin(groups, compared)
    if min((on_edge & within).sum(), (~on_edge & within).sum()) >= MIN_GROUP:
        typical = _per_group(level, groups, ~on_edge)
        size = float(np.median((level / typical)[on_edge & within])) - 1
        p = _test(_ranks(level, groups), groups, edge, shuffled)
        found.append((metric, "edge", "", size, p))
        if p <= 0.05:
            level = _remove(level, on_edge * size)

    timed = np.isfinite(seconds).all() and len(np.unique(seconds)) > len(seconds) / 2
    steps = stats.rankdata(seconds if timed else places[:, 0] * 100 + places[:, 1]) - 1
    steps = steps / steps.max()
    slope = float(stats.theilslopes(level / _per_group(level, groups) - 1, steps).slope)
    p = _test(_ranks(level, groups), groups, steps[:, None], shuffled)
    found.append((metric, "drift", BY_TIME if timed else BY_PLACE, slope, p))
    if p <= 0.05:
        level = _remove(level, (steps - 0.5) * slope)

    polished = None
    for axis, effect in enumerate(("rows", "columns")):
        lines, count = np.unique(places[:, axis], return_counts=True)
        lines = lines[count >= MIN_GROUP]
        if len(lines) < 2:
            continue
        design = (places[:, axis, None] == lines).astype(float)
        p = _test(_ranks(level, groups), groups, design / np.sqrt(design.sum(0)), shuffled)
        polished = polished or _polish(level / _per_group(level, groups) - 1, places)
        size, line = max(((polished[axis][line], line) for line in lines), key=lambda pair: abs(pair[0]))
        found.append((metric, effect, row_name(line) if axis == 0 else str(line + 1), float(size), p))
        if p <= 0.05:
            level = _remove(level, np.array([polished[axis][line] for line in places[:, axis]]))
            polished = None
    return found


def _shuffle(groups, permutations):
    """Indices that exchange members of the same group: int, shape (P, W)."""
    rng = np.random.default_rng(_SEED)
    shuffled = np.empty((permutations, len(groups)), np.int32)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        shuffled[:, members] = members[rng.random((permutations, len(members))).argsort(1)]
    return shuffled


def _test(ranks, groups, design, shuffled):
    """Share of exchanges in which ranks and design agree as much as they do."""
    for group in np.unique(groups):
        members = groups == group
        ranks[members] -= ranks[members].mean()
    score = np.abs(ranks @ design).max() * (1 - 1e-9)
    pieces = np.array_split(shuffled, max(len(shuffled) * len(ranks) // 10**6, 1))  # for memory
    as_large = sum(int((np.abs(ranks[piece] @ design).max(1) >= score).sum()) for piece in pieces)
    return (1 + as_large) / (1 + len(shuffled))


def _ranks(level, groups):
    """Ranks of all values relative to their groups."""
    return stats.rankdata(level / _per_group(level, groups))


def _per_group(level, groups, chosen=None):
    """Median of each well's group, or of chosen wells of it; NaN where there is none."""
    typical = np.full(len(level), np.nan)
    for group in np.unique(groups):
        members = groups == group
        counted = members if chosen is None else members & chosen
        if counted.any():
            typical[members] = np.median(level[counted])
    return np.where(typical > 0, typical, np.nan)


def _remove(level, change):
    """Values without a change; one beyond a factor of ten is left, as nothing sensible would remain."""
    return np.where(change > -0.9, level / (1 + np.maximum(change, -0.9)), level)


def _polish(values, places, rounds=10):
    """Median polish: effects by row, and by column, as dicts by number."""
    lines, index = zip(*(np.unique(places[:, axis], return_inverse=True) for axis in (0, 1)), strict=True)
    rest = np.full([len(one) for one in lines], np.nan)
    rest[index] = values
    effects = [np.zeros(len(one)) for one in lines]
    for _ in range(rounds):
        for axis in (0, 1):
            shift = _known_median(rest, 1 - axis)
            rest -= np.expand_dims(shift, 1 - axis)
            effects[axis] += shift
            center = np.median(effects[axis])
            effects[axis] -= center
            rest += center
    return [dict(zip(one.tolist(), found.tolist(), strict=True)) for one, found in zip(lines, effects, strict=True)]


def _known_median(values, axis):
    """What `numpy.nanmedian` gives of lines with a value each, in a twentieth of its time."""
    ordered = np.moveaxis(np.sort(values, axis), axis, -1)
    known = np.isfinite(ordered).sum(-1)
    low, high = (np.take_along_axis(ordered, at[:, None], -1)[:, 0] for at in ((known - 1) // 2, known // 2))
    return (low + high) / 2


def _words(metric, effect, where, size):
    """An effect as a clause: ``edge wells have 23 % fewer cells``."""
    quantity, _, channel = metric.partition(" ")
    less, more, _ = QUANTITIES[quantity]
    change = f"{abs(size):.0%} {less if size < 0 else more}".replace("%", " %") + (f" in {channel}" if channel else "")
    if effect == "edge":
        return f"edge wells have {change}"
    if effect == "drift":
        return f"the last wells, {where}, have {change} than the first"
    return f"{effect[:-1]} {where} has {change}"
