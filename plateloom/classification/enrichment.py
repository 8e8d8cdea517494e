"""Which treatments hold more cells of a kind than the negative controls: novel cells, cells of a class or of a cluster.

A rare phenotype, or one that no class was made for, moves the mean of a well hardly at all. Its share of the cells does.
"""

import numpy as np
import pandas as pd

NOVEL = 1.0  # novelty beyond which a cell is unlike the labeled ones, see `plateloom.classification.model.predict`
MIN_FREE = 2  # degrees of freedom that the controls of all plates must leave: three of them on one plate
KEYS = ("Metadata_Treatment", "Metadata_Dose", "Metadata_Unit", "Metadata_Control")
NUMBERS = ("share", "control_share", "difference", "p", "q")


def count_kinds(cells, classes=()):
    """Count the cells of a well by kind.

    Parameters
    ----------
    cells : DataFrame, shape (N, ...)
        `Novelty` (NaN: a cell without any value, which is left out) and, with `classes`, `Class`.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    dict of str to int
        `cells`; `novel`: those with a novelty beyond 1; `class {name}` per class: those of it that are not novel.

    Examples
    --------
    >>> cells = pd.DataFrame({"Class": ["a", "a", "b"], "Novelty": [0.5, 2.0, 0.1]})
    >>> count_kinds(cells, ["a", "b"])
    {'cells': 3, 'novel': 1, 'class a': 1, 'class b': 1}
    """
    novelty = cells["Novelty"].to_numpy(float)
    known, novel = np.isfinite(novelty), novelty > NOVEL
    counts = {"cells": int(known.sum()), "novel": int(novel.sum())}
    for name in classes:
        counts[f"class {name}"] = int((known & ~novel & (cells["Class"] == name).to_numpy()).sum())
    return counts


def find_enrichment(wells, kinds, *, alpha=0.05, min_cells=10):
    """Compare the share of each kind of cell in a treatment's wells with that in the negative controls of the same plates.

    Parameters
    ----------
    wells : DataFrame, shape (W, ...)
        `Metadata_Plate`, `Metadata_Treatment`, `Metadata_Dose`, `Metadata_Unit`, `Metadata_Control`, `cells` (int) and one
        column per kind (int): how many of the cells are of it.
    kinds : sequence of str
        Names of these columns.
    alpha : float in (0, 1)
        False discoveries among what is called enriched or depleted [share].
    min_cells : int
        Wells with fewer tell no share, and are left out [cells].

    Returns
    -------
    DataFrame
        One row per treatment and dose but the negative controls, and kind: the four keys, `kind`, `n` wells, `n_plates`,
        `cells`, `share` and `control_share` (of the cells of all wells; of the same plates), `difference` (on the scale
        of the test), `p`, `q` (Benjamini, Hochberg 1995, over all rows), `change` ('enriched', 'depleted' or '') and
        `reason` why there is no p. The least q first. NaN is 'not known'.

    Notes
    -----
    A well is one observation, however many cells it has: cells of a well share its staining and its density. Shares are
    compared as ``2 arcsin sqrt((k + 3/8) / (n + 3/4))`` (Anscombe 1948, doi:10.1093/biomet/35.3-4.246), whose variance
    hardly depends on the share, after the mean of the plate's negative controls is taken off. The yardstick is how
    control wells differ from those of their own plate, and never less than what drawing so many cells gives by chance, nor
    than how the treatment's own wells differ: one odd well makes no finding. A treatment on a single well is tested with
    the spread of the controls alone, and is more easily taken in. The test is Student's t with as many degrees of freedom
    as the controls leave.
    """
    from scipy.stats import false_discovery_control, t

    table = wells[wells["cells"] >= min_cells].reset_index(drop=True)
    negative = (table["Metadata_Control"] == "negative").to_numpy()
    plate = pd.factorize(table["Metadata_Plate"])[0]
    n_plates = plate.max() + 1 if len(plate) else 0
    of_plate = np.bincount(plate[negative], minlength=n_plates)  # controls of each plate
    usable = of_plate > 0
    judging = negative & usable[plate]
    free = int(judging.sum() - usable.sum())
    usable &= free >= MIN_FREE
    n = table["cells"].to_numpy(float)
    noise = 1 / (n + 0.5)  # variance of the transformed share by chance
    treated = table[~negative & table["Metadata_Treatment"].notna() & (table["Metadata_Control"] != "empty")]
    groups = [(key, rows.index.to_numpy()) for key, rows in treated.groupby(list(KEYS), sort=True, dropna=False)]
    found = []
    for kind in kinds:
        k = table[kind].to_numpy(float)
        level = 2 * np.arcsin(np.sqrt((k + 0.375) / (n + 0.75)))
        mean = np.bincount(plate[negative], level[negative], minlength=n_plates) / np.maximum(of_plate, 1)
        spread = ((level - mean[plate])[judging] ** 2).sum() / max(free, 1)
        for key, rows in groups:
            own = rows[usable[plate[rows]]]
            row = dict(zip(KEYS, key, strict=True)) | {"kind": kind, "n": len(own), "n_plates": len(set(plate[own]))}
            row |= dict.fromkeys(NUMBERS, np.nan) | {"cells": int(n[own].sum()), "reason": ""}
            if not len(own):
                row["reason"] = (
                    "too few negative control wells" if free < MIN_FREE else "no negative control on its plates"
                )
                found.append(row)
                continue
            controls = judging & np.isin(plate, plate[own])
            row["share"], row["control_share"] = k[own].sum() / n[own].sum(), k[controls].sum() / n[controls].sum()
            row["difference"] = (level[own] - mean[plate[own]]).mean()
            # The mean of a plate's controls is shared by all wells of the treatment that lie on it.
            per_plate = np.bincount(plate[own], minlength=n_plates) / len(own)
            of_means = (per_plate[usable] ** 2 / of_plate[usable]).sum()
            apart = (level[own] - mean[plate[own]]).var(ddof=1) if len(own) > 1 else 0.0
            variance = max(spread, noise[own].mean(), apart) / len(own) + max(spread, noise[controls].mean()) * of_means
            row["p"] = float(2 * t.sf(abs(row["difference"]) / np.sqrt(variance), free))
            found.append(row)
    counts = {"n": int, "n_plates": int, "cells": int}
    columns = [*KEYS, "kind", *counts, *NUMBERS, "change", "reason"]
    result = pd.DataFrame(found, columns=columns).astype(counts | dict.fromkeys(NUMBERS, float))
    tested = result["p"].notna()
    if tested.any():
        result.loc[tested, "q"] = false_discovery_control(result.loc[tested, "p"])
    side = np.where(result["difference"] > 0, "enriched", "depleted")
    result["change"] = np.where(result["q"] <= alpha, side, "")
    return result.sort_values(["q", "p"], kind="stable", na_position="last").reset_index(drop=True)
