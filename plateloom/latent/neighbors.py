"""Nearest rows of a table among each other, and the graph of UMAP that joins them."""

import numpy as np

from plateloom.compilation import kernel

EXACT = 20_000  # rows up to which all are compared with all
BLOCK = 512  # rows compared at once
GROUP = 300  # rows of a group, where not all are compared
NEAR_GROUPS = 24  # groups that a row is compared with, its own among them
ROUNDS = 5  # of k-means, which makes the groups
SPARE = 4  # candidates more than neighbors: their order by a product of matrices may be wrong in the last digits
HALVINGS = 64


def find_neighbors(rows, count):
    """Find the nearest other rows of each row.

    Parameters
    ----------
    rows : array of float32, shape (n, K)
        Finite.
    count : int
        Neighbors per row; fewer than n.

    Returns
    -------
    numbers : ndarray of int32, shape (n, count)
        Nearest first.
    distances : ndarray of float32, shape (n, count)
        Euclidean.

    Raises
    ------
    ValueError
        If there are not more rows than neighbors, or some are not finite.

    Notes
    -----
    Up to `EXACT` rows all are compared with all, in float64: the neighbors are exact. Of more rows k-means makes groups of about `GROUP`, and a row is compared
    with those of the groups whose centers are nearest to its own group's; few neighbors are missed. Nothing is drawn
    by chance but the first centers, from a fixed seed.

    Examples
    --------
    >>> numbers, distances = find_neighbors(np.array([[0.0], [1.0], [3.0]]), 1)
    >>> numbers.ravel().tolist(), distances.ravel().tolist()
    ([1, 0, 1], [1.0, 1.0, 2.0])
    """
    if len(rows) <= count:
        raise ValueError(f"Found {len(rows)} rows. Expected more than the {count} neighbors of each.")
    rows = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(rows).all():  # they would be nobody's neighbor, and lists of neighbors be left with gaps
        raise ValueError("Some rows hold NaN or infinity. Leave them out.")
    numbers = np.zeros((len(rows), count), np.int32)
    distances = np.zeros((len(rows), count), np.float32)
    if len(rows) <= EXACT:
        every = np.arange(len(rows), dtype=np.int32)
        _compare(every, every, rows.astype(float), rows.mean(axis=0, dtype=float), numbers, distances)
    else:
        for center, asked, candidates in _pairings(rows, count):
            _compare(asked, candidates, rows, center, numbers, distances)
    return numbers, distances


def fuzzy_graph(numbers, distances):
    """Join rows with their neighbors, the more strongly the nearer they are by the measure of each row's neighborhood.

    Parameters
    ----------
    numbers : array of int, shape (n, k)
        Neighbors of each row; see `find_neighbors`.
    distances : array of float32, shape (n, k)
        Sorted.

    Returns
    -------
    scipy.sparse.csr_array of float32, shape (n, n)
        Symmetric; strengths in (0, 1].

    Notes
    -----
    As in UMAP (McInnes et al. 2018, arXiv:1802.03426): exp(-(d - rho) / sigma) with rho the distance to the nearest row
    that is not the same, sigma such that a row's strengths sum to log2(k + 1), and a + b - ab for a pair seen from both
    sides.
    """
    from scipy import sparse

    n, k = numbers.shape
    strengths = _strengths(np.ascontiguousarray(distances, np.float32))
    starts = np.arange(0, n * k + 1, k)
    seen = sparse.csr_array((strengths.ravel(), numbers.ravel().astype(np.int64), starts), shape=(n, n))
    other = seen.T.tocsr()
    graph = (seen + other - seen.multiply(other)).tocsr()
    graph.sort_indices()
    return graph


def nearest_rows(sample, rows, k):
    """Find the nearest rows of a sample, in the same way however many rows are asked for.

    Parameters
    ----------
    sample : array of float64, shape (n, K)
    rows : array of float64, shape (N, K)
        At most `BLOCK`.
    k : int

    Returns
    -------
    numbers : ndarray of int, shape (N, k)
        The nearest first; of those as near the first in the sample.
    distances : ndarray of float64, shape (N, k)
    """
    k = min(k, len(sample))
    full = np.zeros((BLOCK, rows.shape[1]))  # always full, so that no row's rounding depends on how many came with it
    full[: len(rows)] = rows
    near = ((sample**2).sum(axis=1) - 2 * full @ sample.T)[: len(rows)]
    # The product finds candidates; their distances are computed plainly, so that 0 is 0.
    keep = min(k + SPARE, len(sample))
    candidates = np.sort(np.argpartition(near, keep - 1, axis=1)[:, :keep], axis=1)
    distance = np.sqrt(((rows[:, None] - sample[candidates]) ** 2).sum(axis=2))
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, axis=1), np.take_along_axis(distance, order, axis=1)


def _compare(asked, candidates, rows, center, numbers, distances):
    """Find the neighbors of the rows asked about among the candidates, in the precision of the rows."""
    near = rows[candidates] - center  # or the squares would drown the differences
    # One product gives what the squared distances to a row differ in: |r|^2 - 2 q r.
    right = np.column_stack([-2 * near, (near * near).sum(axis=1)]).T
    for start in range(0, len(asked), BLOCK):
        block = asked[start : start + BLOCK]
        left = np.column_stack([rows[block] - center, np.ones(len(block), rows.dtype)])
        _keep_nearest(left @ right, block, candidates, rows, numbers, distances)


def _pairings(rows, count):
    """Center of each group, the numbers of its rows, and those of the rows that they are compared with."""
    centers, groups = _group(rows)
    sizes = np.array([len(group) for group in groups])
    for center, group in zip(centers, groups, strict=True):
        order = np.argsort(((centers - center) ** 2).sum(axis=1), kind="stable")
        enough = max(NEAR_GROUPS, np.searchsorted(np.cumsum(sizes[order]), count + 1) + 1)
        yield center, group, np.concatenate([groups[near] for near in order[:enough]])


def _group(rows):
    """Centers by some rounds of k-means, and the rows nearest to each; only groups that have any."""
    random = np.random.default_rng(0)
    centers = rows[np.sort(random.choice(len(rows), -(-len(rows) // GROUP), replace=False))]
    for last in [False] * ROUNDS + [True]:
        squares = (centers * centers).sum(axis=1)
        blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        nearest = np.concatenate([(squares - 2 * (block @ centers.T)).argmin(axis=1) for block in blocks])
        order = np.argsort(nearest, kind="stable").astype(np.int32)
        present, first = np.unique(nearest[order], return_index=True)
        if last:
            return centers[present], np.split(order, first[1:])
        sizes = np.diff(first, append=len(rows))
        centers = (np.add.reduceat(rows[order].astype(float), first, axis=0) / sizes[:, None]).astype(np.float32)


@kernel
def _keep_nearest(scores, asked, candidates, rows, numbers, distances):
    """Of the candidates with the least scores, those at the least distances; a row is not its own neighbor."""
    count = numbers.shape[1]
    kept = min(count + SPARE, len(candidates) - 1)
    rough, rough_numbers = np.empty(kept, scores.dtype), np.empty(kept, np.int32)
    exact, exact_numbers = np.empty(count, np.float64), np.empty(count, np.int32)
    for i in range(len(asked)):
        own = asked[i]
        rough[:] = np.inf
        rough_numbers[:] = len(rows)
        last = rough[-1]
        for j in range(len(candidates)):
            if scores[i, j] < last and candidates[j] != own:
                _insert(rough, rough_numbers, scores[i, j], candidates[j])
                last = rough[-1]
        exact[:] = np.inf
        exact_numbers[:] = len(rows)
        for other in rough_numbers:
            squared = 0.0
            for axis in range(rows.shape[1]):
                squared += (np.float64(rows[own, axis]) - np.float64(rows[other, axis])) ** 2
            _insert(exact, exact_numbers, squared, other)
        numbers[own] = exact_numbers
        distances[own] = np.sqrt(exact)


@kernel
def _insert(keys, numbers, key, number):
    """Put one into a sorted list, from which the last falls out; of equal keys the smaller number comes first."""
    place = len(keys)
    while place > 0 and (keys[place - 1] > key or (keys[place - 1] == key and numbers[place - 1] > number)):
        if place < len(keys):
            keys[place], numbers[place] = keys[place - 1], numbers[place - 1]
        place -= 1
    if place < len(keys):
        keys[place], numbers[place] = key, number


@kernel
def _strengths(distances):
    """How strongly each row is joined with its neighbors, seen from it alone."""
    n, k = distances.shape
    strengths = np.ones((n, k), np.float32)
    target = np.log2(k + 1)
    floor_of_all = 1e-3 * distances.mean()
    for i in range(n):
        row = distances[i].astype(np.float64)
        nearest = 0.0
        for d in row:
            if d > 0:
                nearest = d
                break
        low, high, width = 0.0, np.inf, 1.0
        for _ in range(HALVINGS):
            total = 0.0
            for d in row:
                total += np.exp(-max(d - nearest, 0.0) / width)
            if total > target:
                high = width
            else:
                low = width
            width = 2 * width if np.isinf(high) else (low + high) / 2
        width = max(width, 1e-3 * row.mean() if nearest > 0 else floor_of_all)
        for j in range(k):
            if row[j] > nearest:
                strengths[i, j] = np.exp(-(row[j] - nearest) / width)
    return strengths
