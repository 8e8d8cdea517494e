"""Principal axes of rows that need not fit into memory: read in batches, several times over."""

import numpy as np

SPARE = 10  # axes more than asked for, which the last of those asked for need to settle
PASSES = 5


def principal_axes(batches, count):
    """Find the axes along which rows vary most, by subspace iteration from a fixed random start.

    Parameters
    ----------
    batches : callable
        ``batches()`` gives the rows anew, in pieces of any size: arrays of float32, shape (n, F).
    count : int
        Axes wanted; fewer come back where the rows span fewer.

    Returns
    -------
    mean : ndarray of float32, shape (F,)
    axes : ndarray of float32, shape (F, K)
        Orthonormal; the largest entry of each is positive.
    shares : ndarray of float64, shape (K,)
        Of the variance.

    Raises
    ------
    ValueError
        If there is no row.

    Notes
    -----
    Halko et al. 2011, doi:10.1137/090771806. A pass costs two products of the rows with F × K numbers, and holds one batch.
    Products run in one thread of numpy's: of several, each number of threads rounds in its own way.

    Examples
    --------
    >>> rows = np.array([[0, 0, 1], [2, 4, 1], [4, 8, 1]], np.float32)
    >>> mean, axes, shares = principal_axes(lambda: [rows], 2)
    >>> mean.tolist(), axes.astype(float).round(3).tolist(), shares.round(3).tolist()
    ([2.0, 4.0, 1.0], [[0.447], [0.894], [0.0]], [1.0])
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):  # not OpenMP, which a network may need for its batches
        return _iterate(batches, count)


def _iterate(batches, count):
    """Mean, axes and shares; see `principal_axes`."""
    number, total, squares = 0, 0.0, 0.0
    for batch in batches():
        number += len(batch)
        total = total + batch.sum(axis=0, dtype=np.float64)
        squares += float(np.square(batch, dtype=np.float64).sum())
    if not number:
        raise ValueError("No rows to find principal axes of.")
    mean = (total / number).astype(np.float32)
    squares = max(squares - number * float(np.square(total / number).sum()), np.finfo(float).tiny)
    start = np.random.default_rng(0).standard_normal((len(mean), min(count + SPARE, len(mean), number)))
    basis = np.linalg.qr(start)[0]
    for _ in range(PASSES):
        image, narrow = np.zeros_like(basis), basis.astype(np.float32)
        for batch in batches():
            centered = batch - mean
            image += centered.T @ (centered @ narrow)
        small, last = basis.T @ image, basis
        basis = np.linalg.qr(image)[0]
    variance, turn = np.linalg.eigh((small + small.T) / 2)
    variance, turn = variance[::-1], turn[:, ::-1]
    rank = max(int((variance > 1e-6 * squares).sum()), 1)
    axes = last @ turn[:, : min(count, rank)]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    axes = np.ascontiguousarray(axes * np.where(largest < 0, -1.0, 1.0), dtype=np.float32)
    return mean, axes, variance[: axes.shape[1]] / squares
