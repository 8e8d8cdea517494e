"""The layout of UMAP: points on a plane that a graph joins."""

import numpy as np

from plateloom.compilation import kernel

EPOCHS, EPOCHS_OF_MANY, MANY = 500, 200, 10_000  # as umap-learn's: fewer epochs for more than so many rows
PUSHES = 5  # rows drawn by chance that a row is pushed from, each time that a neighbor pulls it
STEP_MAX = 4.0  # [map units]
GAP = 1.25  # distance of the middles of two groups that nothing joins, at least, in sums of their radii
SHIFT = np.uint32(16)  # the bits of a float32 that are left say its size to 1/128


def lay_out(graph, start, *, min_dist=0.1, seed=0):
    """Move points until those that the graph joins lie together and others apart.

    Parameters
    ----------
    graph : scipy.sparse.csr_array of float32, shape (n, n)
        Symmetric; strengths in (0, 1].
    start : array of float32, shape (n, 2)
    min_dist : float in [0, 1)
        How near the points come to each other [map units].
    seed : int

    Returns
    -------
    ndarray of float32, shape (n, 2)

    Notes
    -----
    The forces, their limit, the falling rate and the schedule of the edges are those of UMAP. Other than there, the five
    pushes that go with a pull are added up before the point moves, and forces are looked up in tables that are right to
    1 %. An edge moves both of its ends: if each moved its own end only, a group would be moved by pulls inside of it, and
    the groups of a small set wander apart. One thread, one order: the same seed gives the same bytes however many cores
    there are.
    """
    epochs = EPOCHS if len(start) <= MANY else EPOCHS_OF_MANY
    share = graph.data / graph.data.max()
    rounds = np.where(share * epochs >= 1, share, 0).astype(np.float32)
    pull, push = _force_tables(*fit_curve(min_dist))
    places = np.array(start, np.float32)
    _move(
        places,
        graph.indptr.astype(np.int64),
        graph.indices.astype(np.int32),
        rounds,
        epochs,
        pull,
        push,
        np.uint64(seed),
    )
    return places


def draw_together(graph, places):
    """Move groups that nothing joins as near to each other as they can be told apart, as they lie around the middle.

    Such groups only push each other, for as long as the layout goes on: how far apart they end says nothing, and the
    fewer rows there are, the less room it leaves to see them.

    Parameters
    ----------
    graph : scipy.sparse.csr_array, shape (n, n)
    places : ndarray of float32, shape (n, 2)

    Returns
    -------
    ndarray of float32, shape (n, 2)
        Distances within a group are what they were.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import pdist

    count, group = connected_components(graph, directed=False)
    if count == 1:
        return places
    sizes = np.bincount(group)
    middles = np.stack([np.bincount(group, axis) / sizes for axis in places.T.astype(float)], axis=1)
    radii = np.zeros(count)
    np.maximum.at(radii, group, np.linalg.norm(places - middles[group], axis=1))
    first, second = np.triu_indices(count, 1)
    apart = np.maximum(pdist(middles), np.finfo(np.float32).tiny)
    factor = min(1.0, (GAP * (radii[first] + radii[second]) / apart).max())
    return (places - (1 - factor) * (middles - middles.mean(axis=0))[group]).astype(np.float32)


def fit_curve(min_dist):
    """Find the smooth curve 1 / (1 + a d^2b) nearest to UMAP's membership of points at distance d.

    Parameters
    ----------
    min_dist : float in [0, 1)
        Up to here the membership is 1; from here on it falls by e per map unit.

    Returns
    -------
    a, b : float
    """
    from scipy.optimize import curve_fit

    distance = np.linspace(0, 3, 300)
    membership = np.exp(-np.maximum(distance - min_dist, 0))
    (a, b), _ = curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), distance, membership)
    return float(a), float(b)


def _force_tables(a, b):
    """Pull and push per map unit apart, by the leading bits of the squared distance as float32."""
    bits = (np.arange(1 << 15, dtype=np.uint32) << SHIFT) + (1 << 15)
    with np.errstate(all="ignore"):  # the last bits mean infinity and NaN
        squared = bits.view(np.float32).astype(float)
        power = squared**b
        pull = 2 * a * b * power / squared / (1 + a * power)
        push = 2 * b / ((1e-3 + squared) * (1 + a * power))
    return pull.astype(np.float32), push.astype(np.float32)


@kernel
def _move(places, starts, ends, rounds, epochs, pull, push, seed):
    """Move every point along its edges, epoch by epoch; an edge of share w takes part in w of the epochs."""
    n = np.uint64(len(places))
    for epoch in range(epochs):
        rate = np.float32(1 - epoch / epochs)
        for point in range(len(places)):
            x, y = places[point]
            state = _scramble(seed * n * np.uint64(epochs) + np.uint64(epoch) * n + np.uint64(point))
            for edge in range(starts[point], starts[point + 1]):
                share = rounds[edge]
                if np.int64(share * np.float32(epoch + 1)) == np.int64(share * np.float32(epoch)):
                    continue
                step_x, step_y = _step(x, y, places, ends[edge], pull)
                x -= rate * step_x
                y -= rate * step_y
                places[ends[edge], 0] += rate * step_x
                places[ends[edge], 1] += rate * step_y
                sum_x, sum_y = np.float32(0), np.float32(0)
                for _ in range(PUSHES):
                    state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
                    other = ((state >> np.uint64(32)) * n) >> np.uint64(32)
                    if other == np.uint64(point):  # whose place is not yet where the point has moved to
                        continue
                    step_x, step_y = _step(x, y, places, other, push)
                    sum_x += step_x
                    sum_y += step_y
                x += rate * sum_x
                y += rate * sum_y
            places[point, 0] = x
            places[point, 1] = y


@kernel(inline="always")
def _step(x, y, places, other, force):
    """The way from another point, times the force at this distance, at most `STEP_MAX`."""
    across, up = x - places[other, 0], y - places[other, 1]
    strength = force[np.float32(across * across + up * up).view(np.uint32) >> SHIFT]
    limit = np.float32(STEP_MAX)
    return min(max(strength * across, -limit), limit), min(max(strength * up, -limit), limit)


@kernel
def _scramble(number):
    """A start of random numbers that has nothing to do with that of the next number (SplitMix64)."""
    number = number * np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))
