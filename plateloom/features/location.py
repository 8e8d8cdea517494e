"""Location: an object's center, its center of mass and its brightest pixel, in image coordinates [px].

Of several equally bright pixels the first in row-major order is the brightest one (CellProfiler: whichever its sort
puts last).
"""

import numpy as np


def columns(channels, **options):
    """Column names without the compartment."""
    return ["Location_Center_X", "Location_Center_Y"] + [
        f"Location_{point}_{axis}_{channel}"
        for channel in channels
        for point in ("CenterMassIntensity", "MaxIntensity")
        for axis in "XYZ"
    ]


def measure(index, image, channels, **options):
    """Measure the columns; the center of mass of an object without any intensity is NaN.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`.

    Returns
    -------
    ndarray of float64, shape (N, 2 + 6 C)
    """
    sums, found = index.sums, [index.centers[:, ::-1]]
    for total, masses, brightest in zip(sums.total, index.masses, sums.brightest, strict=True):
        depth = np.where(total != 0, 0.0, np.nan)
        found += [(index.bounds[:, :2] + masses)[:, ::-1], depth[:, None]]
        found += [index.columns[brightest, None], index.rows[brightest, None], np.zeros((len(depth), 1))]
    return np.hstack(found)
