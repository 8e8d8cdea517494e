"""Filters that say what a pixel looks like at several scales; each looks no farther than a known distance.

Sums are of float32 in one order, without contraction: a tile with a halo of `reach_px` gets, to the bit, what the whole
image gets, on any processor.
"""

import numpy as np

from plateloom.compilation import kernel

TRUNCATE = 3.0  # Gaussians end at so many sigmas
INNER = 0.66  # sigma of the narrower Gaussian of a difference, as a fraction of the wider one's
OUTER = 0.5  # sigma of the window of a structure tensor, as a fraction of its gradients'
SMALLEST_PX = 0.3  # sigma from which on a Gaussian is one
FILTERS = (
    "Gaussian",
    "DifferenceOfGaussians",
    "GradientMagnitude",
    "LaplacianOfGaussian",
    "HessianLarge",
    "HessianSmall",
    "StructureLarge",
    "StructureSmall",
)


def filter_names(channels, sigmas):
    """Name what `filter_image` returns.

    Parameters
    ----------
    channels : sequence of str
    sigmas : sequence of float
        In whatever unit names shall have.

    Returns
    -------
    list of str

    Examples
    --------
    >>> filter_names(["DNA"], [0.7])[:2]
    ['Gaussian_DNA_0.7', 'DifferenceOfGaussians_DNA_0.7']
    """
    return [f"{name}_{channel}_{sigma:g}" for channel in channels for sigma in sigmas for name in FILTERS]


def reach_px(sigmas_px):
    """How far the filters look [px].

    Parameters
    ----------
    sigmas_px : sequence of float

    Returns
    -------
    int
        The Gaussian's radius, one pixel for its slope, and the radius of the structure tensor's window.
    """
    return max(_radius(sigma) + 1 + _radius(OUTER * sigma) for sigma in sigmas_px)


def filter_image(image, sigmas_px):
    """Filter an image.

    Parameters
    ----------
    image : ndarray of float32, shape (C, H, W)
        Beyond its edge it is mirrored.
    sigmas_px : sequence of float, length S
        Of the Gaussians [px].

    Returns
    -------
    ndarray of float32, shape (C * S * 8, H, W)
        In the order of `filter_names`. Slopes are multiplied by sigma, curvatures by its square, so that the values of an image
        do not depend on its pixel size.
    """
    channels, height, width = image.shape
    found = np.empty((channels * len(sigmas_px) * len(FILTERS), height, width), np.float32)
    at = 0
    for channel in image:
        channel = np.ascontiguousarray(channel, np.float32)
        for sigma in sigmas_px:
            planes = found[at : at + len(FILTERS)]
            at += len(FILTERS)
            planes[0] = smooth(channel, sigma)
            planes[1] = planes[0] - smooth(channel, INNER * sigma)
            tensor = np.empty((3, height, width), np.float32)
            _derive(planes[0], np.float32(sigma), planes[2:6], tensor)
            _eigenvalues(*(smooth(part, OUTER * sigma) for part in tensor), planes[6:8])
    return found


def smooth(plane, sigma_px):
    """Smooth by a Gaussian that is cut off at three sigmas.

    Parameters
    ----------
    plane : ndarray of float32, shape (H, W)
        Beyond its edge it is mirrored: d c b a | a b c d | d c b a.
    sigma_px : float

    Returns
    -------
    ndarray of float32, shape (H, W)
    """
    radius = _radius(sigma_px)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / max(sigma_px, SMALLEST_PX)) ** 2)
    return _convolve(np.ascontiguousarray(plane), (weights / weights.sum()).astype(np.float32)[radius:])


def _radius(sigma_px):
    """Radius of the Gaussian [px]."""
    return int(TRUNCATE * max(sigma_px, SMALLEST_PX) + 0.5)


@kernel
def _mirror(i, size):
    """The place within an axis that a place beyond it mirrors."""
    i = i % (2 * size)
    return i if i < size else 2 * size - 1 - i


@kernel
def _convolve(plane, weights):
    """Convolve rows and columns with a symmetric kernel, of which `weights` is the half from its middle on."""
    height, width = plane.shape
    radius = len(weights) - 1
    found = np.empty((height, width), np.float32)
    row = np.empty(width + 2 * radius, np.float32)
    line = np.empty(width, np.float32)
    for y in range(height):
        here = plane[y]
        middle = row[radius : radius + width]
        for x in range(width):
            middle[x] = weights[0] * here[x]
        for k in range(1, radius + 1):
            above, below = plane[_mirror(y - k, height)], plane[_mirror(y + k, height)]
            weight = weights[k]
            for x in range(width):
                middle[x] += weight * (above[x] + below[x])
        for x in range(radius):
            row[x] = row[radius + _mirror(x - radius, width)]
            row[radius + width + x] = row[radius + _mirror(width + x, width)]
        for x in range(width):
            line[x] = weights[0] * row[radius + x]
        for k in range(1, radius + 1):
            weight = weights[k]
            left, right = row[radius - k : radius - k + width], row[radius + k : radius + k + width]
            for x in range(width):
                line[x] += weight * (left[x] + right[x])
        found[y] = line
    return found


@kernel
def _derive(plane, sigma, found, tensor):
    """Gradient magnitude, Laplacian and eigenvalues of the Hessian of a smoothed plane, and products of its slopes."""
    height, width = plane.shape
    half, quarter = np.float32(0.5), np.float32(0.25)
    square = sigma * sigma
    for y in range(height):
        above, here, below = plane[max(y - 1, 0)], plane[y], plane[min(y + 1, height - 1)]
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            dx = half * sigma * (here[right] - here[left])
            dy = half * sigma * (below[x] - above[x])
            xx = square * ((here[right] - here[x]) - (here[x] - here[left]))
            yy = square * ((below[x] - here[x]) - (here[x] - above[x]))
            xy = quarter * square * ((below[right] - below[left]) - (above[right] - above[left]))
            found[0, y, x] = np.sqrt(dx * dx + dy * dy)
            found[1, y, x] = xx + yy
            mean, part = half * (xx + yy), half * (xx - yy)
            root = np.sqrt(part * part + xy * xy)
            found[2, y, x] = mean + root
            found[3, y, x] = mean - root
            tensor[0, y, x] = dx * dx
            tensor[1, y, x] = dx * dy
            tensor[2, y, x] = dy * dy


@kernel
def _eigenvalues(xx, xy, yy, found):
    """Eigenvalues of symmetric tensors, the larger one first."""
    height, width = xx.shape
    half = np.float32(0.5)
    for y in range(height):
        for x in range(width):
            mean, part = half * (xx[y, x] + yy[y, x]), half * (xx[y, x] - yy[y, x])
            root = np.sqrt(part * part + xy[y, x] * xy[y, x])
            found[0, y, x] = mean + root
            found[1, y, x] = mean - root
