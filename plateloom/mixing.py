"""Whether wells of different batches lie among each other: of a well's nearest wells, how many are from its own batch.

Batches that do not mix are told apart by how they were made, not by what was put in. But treatments are not spread evenly
over batches, so what perfect mixing would look like is found by letting wells of one treatment exchange their batches.
"""

import numpy as np

NEIGHBORS = 10
MIN_WELLS = 8  # that can be compared
MOST_WELLS = 5000
MOST_OF_ONE = 50  # wells of a treatment, where there are too many wells and treatments


def measure_mixing(values, batches, treatments, *, neighbors=NEIGHBORS, n_permutations=200, seed=0):
    """Measure how well the wells of several batches mix, against what chance would give.

    Parameters
    ----------
    values : array of float, shape (W, F)
        Profiles; finite.
    batches : array of str, shape (W,)
        Plate or batch of each well; '' where it is not known.
    treatments : array of str, shape (W,)
        What was put into each well, with its dose; '' where it is not known. Only treatments that are in two batches or more
        tell batches from treatments; other wells are left out.
    neighbors : int
        Nearest wells that are looked at (by cosine), at most a quarter of the wells.
    n_permutations, seed : int

    Returns
    -------
    dict
        `n_wells`, `n_batches`, `neighbors`; `own`, the share of a well's nearest wells that are of its own batch, with
        `own_expected`, `own_low` and `own_high`, its mean and 95 % range if wells of the same treatment exchange their batches;
        `p`, how often chance gives as much; `effective`, the number of batches among the nearest wells, each counted by its share
        (inverse Simpson), with `effective_expected`; `mixing` = (1 - own) / (1 - own_expected): 1 if batches make no difference, 0
        if no well has a near one of another batch.

    Raises
    ------
    ValueError
        If fewer than `MIN_WELLS` wells can be compared.

    Notes
    -----
    The effective number is that of the LISI (Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0) with equal weights; the
    comparison with chance follows kBET (Büttner et al. 2019, doi:10.1038/s41592-018-0254-1), by permutation within treatments
    instead of a chi-squared test, which would take the layout for an effect of batches. Noise mixes perfectly: read it beside
    what says how much signal is left. Of more than `MOST_WELLS` wells whole treatments are
    drawn, of very frequent ones some wells of each batch.

    Examples
    --------
    >>> angle = np.repeat([0.0, 1.0], 10) + np.tile(np.linspace(0, 0.1, 10), 2)
    >>> found = measure_mixing(np.stack([np.cos(angle), np.sin(angle)], 1), ["P1"] * 10 + ["P2"] * 10, ["DMSO"] * 20)
    >>> found["own"], found["effective"], found["mixing"]
    (1.0, 1.0, 0.0)
    """
    from sklearn.neighbors import NearestNeighbors

    values, batches, treatments = np.asarray(values, float), np.asarray(batches, str), np.asarray(treatments, str)
    if not len(values) == len(batches) == len(treatments):
        raise ValueError(f"Found {len(values)} profiles, {len(batches)} batches, {len(treatments)} treatments.")
    rows = _comparable(batches, treatments)
    if len(rows) < MIN_WELLS:
        raise ValueError(
            f"{len(rows)} wells hold a treatment that is in two batches or more, {MIN_WELLS} needed: else batches and "
            "treatments cannot be told apart"
        )
    random = np.random.default_rng(seed)
    if len(rows) > MOST_WELLS:
        rows = _draw_treatments(rows, batches, treatments, random)
        rows = rows[_comparable(batches[rows], treatments[rows])]
    _, batch = np.unique(batches[rows], return_inverse=True)
    _, group = np.unique(treatments[rows], return_inverse=True)
    neighbors = int(max(2, min(neighbors, len(rows) // 4)))
    length = np.linalg.norm(values[rows], axis=1, keepdims=True)
    unit = np.divide(values[rows], length, out=np.zeros_like(values[rows]), where=length > 0)
    near = NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(unit).kneighbors(return_distance=False)

    own, effective = _count(batch, near)
    order = np.argsort(group, kind="stable")  # wells of a treatment side by side
    chance = np.empty((n_permutations, 2))
    for i in range(n_permutations):
        exchanged = np.empty_like(batch)
        exchanged[order] = batch[np.lexsort((random.random(len(batch)), group))]
        chance[i] = _count(exchanged, near)
    low, high = np.quantile(chance[:, 0], [0.025, 0.975])
    expected = float(chance[:, 0].mean())
    return {
        "n_wells": len(rows),
        "n_batches": int(batch.max()) + 1,
        "neighbors": neighbors,
        "own": own,
        "own_expected": expected,
        "own_low": float(low),
        "own_high": float(high),
        "p": float((1 + (chance[:, 0] >= own - 1e-12).sum()) / (1 + n_permutations)),
        "effective": effective,
        "effective_expected": float(chance[:, 1].mean()),
        "mixing": (1 - own) / (1 - expected) if expected < 1 else 1.0,
    }


def _comparable(batches, treatments):
    """Rows of the wells whose treatment is in two batches or more."""
    known = (batches != "") & (treatments != "")
    pairs = np.unique(np.stack([treatments[known], batches[known]]), axis=1)
    names, count = np.unique(pairs[0], return_counts=True)
    return np.flatnonzero(known & np.isin(treatments, names[count >= 2]))


def _draw_treatments(rows, batches, treatments, random):
    """Up to `MOST_WELLS` of these rows, by whole treatments; of a frequent one some wells, from as many batches as there are."""
    rows = random.permutation(rows)
    _, pair = np.unique(np.stack([treatments[rows], batches[rows]]), axis=1, return_inverse=True)
    _, group = np.unique(treatments[rows], return_inverse=True)
    turn = _place_within(np.argsort(pair, kind="stable"), pair)  # the first well of each batch, then the second
    place = _place_within(np.lexsort((turn, group)), group)
    kept = place < max(MOST_OF_ONE, MOST_WELLS // (group.max() + 1))
    size = np.bincount(group[kept])
    order = random.permutation(len(size))
    drawn = order[np.cumsum(size[order]) <= MOST_WELLS]
    return np.sort(rows[kept & np.isin(group, drawn)])


def _place_within(order, group):
    """Place of each entry within its group, 0 first, in an order that sorts by group."""
    count = np.bincount(group)
    place = np.empty(len(group), int)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
    return place


def _count(batch, near):
    """Share of nearest wells that are of the own batch, and effective number of batches among them, over all wells."""
    of_near = batch[near]
    n_wells, neighbors = near.shape
    ordered = np.sort(of_near, axis=1)
    first = np.flatnonzero(np.diff(ordered, axis=1, prepend=-1))  # of each batch among a well's nearest
    size = np.diff(first, append=ordered.size)
    alike = np.bincount(first // neighbors, size**2, minlength=n_wells) / neighbors**2
    return float((of_near == batch[:, None]).mean()), float((1 / alike).mean())
