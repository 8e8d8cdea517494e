"""A stack of planes becomes one plane, with no more than two of them in memory."""

import numpy as np

METHODS = ("max", "mean", "best focus")


def project(planes, method):
    """Reduce a stack to one plane.

    Parameters
    ----------
    planes : iterable of ndarray of integer, shape (Y, X)
        At least one; all of the same shape and type.
    method : {'max', 'mean', 'best focus'}
        The brightest value of each pixel; their mean, rounded; or the one plane that is sharpest by the variance of its
        Laplacian over its mean squared (the first of several).

    Returns
    -------
    ndarray, shape (Y, X)
        Of the planes' type.

    Examples
    --------
    >>> stack = [np.array([[1, 9]], dtype=np.uint8), np.array([[4, 4]], dtype=np.uint8)]
    >>> project(stack, "max"), project(stack, "mean")
    (array([[4, 9]], dtype=uint8), array([[3, 7]], dtype=uint8))
    """
    if method == "best focus":
        return max(((_sharpness(plane), plane) for plane in planes), key=lambda found: found[0])[1]
    planes = iter(planes)
    first = total = next(planes)
    count = 1
    for plane in planes:
        count += 1
        if method == "max":
            total = np.maximum(total, plane, out=None if total is first else total)
        else:
            total = total + plane if total is not first else np.add(total, plane, dtype=np.uint64)
    return total if method == "max" or count == 1 else ((total + count // 2) // count).astype(first.dtype)


def _sharpness(plane):
    """Variance of the Laplacian over the squared mean [1]: brighter is not sharper."""
    values = plane.astype(np.float32)
    if min(values.shape) < 3:
        return 0.0
    laplacian = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * values[1:-1, 1:-1]
    mean = values.mean(dtype=np.float64)
    return float(laplacian.var(dtype=np.float64) / mean**2) if mean else 0.0
