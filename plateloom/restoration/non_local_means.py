"""Non-local means: every pixel becomes the mean of the pixels around it whose own surroundings look like its own.

Buades, Coll, Morel 2005, doi:10.1109/CVPR.2005.38. Parameters and sense are those of scikit-image's `denoise_nl_means`. Its
fast mode takes differences of running sums over the whole image, whose last digits depend on where the image begins; here
each sum is made of its own pixels, always in the same order, and the weights of products only.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.compilation import kernel


class Params(BaseModel):
    """Parameters of the means; the noise is given, not estimated, so that every tile is told the same."""

    model_config = ConfigDict(extra="forbid")

    noise: float = Field(
        gt=0,
        le=1,
        description="Standard deviation of the noise, as a share of the data type's range [1]: `noise` of qc.parquet divided "
        "by 65535, or by 255 for 8 bits.",
    )
    strength: float = Field(
        1.3, gt=0, description="How different surroundings may look beyond the noise: the filter's h [noise]."
    )
    patch_px: int = Field(5, ge=1, le=15, description="Side of the surroundings that are compared; made odd [px].")
    distance_px: int = Field(6, ge=1, le=30, description="How far away pixels are looked for, in y and x [px].")


def halo_px(params, pixel_size_um):
    """How far around a pixel others and their surroundings lie [px]."""
    return params.distance_px + params.patch_px // 2


def restore(plane, params, pixel_size_um):
    """Average alike pixels of a plane.

    Parameters
    ----------
    plane : ndarray of float32, shape (Y, X)
    params : Params
    pixel_size_um : float
        Width of a pixel [µm/px]; without influence.

    Returns
    -------
    ndarray of float32, shape (Y, X)
        Within the range of the plane.
    """
    if not plane.size:
        return plane.copy()
    margin = 2 * params.distance_px + params.patch_px // 2
    padded = np.pad(plane, margin, mode="symmetric")
    found = _average(padded, *plane.shape, params.patch_px // 2, params.distance_px, params.noise, params.strength)
    return np.clip(found, plane.min(), plane.max())


@kernel
def _average(padded, height, width, half, distance, noise, strength):
    """Weighted means of the middle of a padded plane; every shift serves the pixels at both of its ends.

    The weight is (1 - x / 64)^64 in place of exp(-x): a compiler may take another exponential for the last columns than for
    the others.
    """
    margin = 2 * distance + half
    allowed = np.float32(2 * noise**2)
    scale = np.float32(1 / (strength * noise) ** 2 / 64)
    share = np.float32(1 / (2 * half + 1) ** 2)
    gain = np.zeros((height, width), np.float32)
    total = np.ones((height, width), np.float32)
    weights = np.empty((height + distance, width + distance), np.float32)
    sums = np.empty((height + distance + 2 * half, width + distance), np.float32)
    squares = np.empty(width + distance + 2 * half, np.float32)
    for dy in range(distance + 1):
        for dx in range(-distance, distance + 1):
            if dy == 0 and dx <= 0:
                continue
            left = max(dx, 0)  # weights begin so far outside of the plane, above by dy
            across = width + abs(dx)
            for y in range(height + dy + 2 * half):
                here, there = padded[y + margin - dy - half], padded[y + margin - half]
                first = margin - left - half
                for x in range(across + 2 * half):
                    difference = here[first + x] - there[first + x + dx]
                    squares[x] = difference * difference
                for x in range(across):
                    sums[y, x] = squares[x]
                for k in range(1, 2 * half + 1):
                    for x in range(across):
                        sums[y, x] += squares[x + k]
            for y in range(height + dy):
                row = weights[y]
                for x in range(across):
                    row[x] = sums[y, x]
                for k in range(1, 2 * half + 1):
                    for x in range(across):
                        row[x] += sums[y + k, x]
                for x in range(across):
                    rest = np.float32(1) - max(row[x] * share - allowed, np.float32(0)) * scale
                    rest = max(rest, np.float32(0))
                    for _ in range(6):
                        rest = rest * rest
                    row[x] = rest
            for y in range(height):
                middle = padded[y + margin]
                below, above = padded[y + margin + dy], padded[y + margin - dy]
                to, fro = weights[y + dy], weights[y]
                for x in range(width):
                    value = middle[x + margin]
                    a, b = to[x + left], fro[x + left - dx]
                    gain[y, x] += a * (below[x + margin + dx] - value) + b * (above[x + margin - dx] - value)
                    total[y, x] += a + b
    for y in range(height):
        for x in range(width):
            gain[y, x] = padded[y + margin, x + margin] + gain[y, x] / total[y, x]
    return gain
