"""Location: an object's center, its center of mass and its brightest pixel, in image coordinates [px].

Of several equally bright pixels the first in row-major order is the brightest one (CellProfiler: whichever its sort
puts last).
"""

import numpy as np

from plateloom.compilation import kernel


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
    brightness = [
        _locate(index.values[c], index.offsets, index.rows, index.columns, index.bounds) for c in range(len(channels))
    ]
    return np.hstack([index.centers[:, ::-1], *brightness])


@kernel
def _locate(values, offsets, rows, columns, bounds):
    """Center of mass x, y, z and brightest pixel x, y, z in one channel."""
    count = len(offsets) - 1
    out = np.empty((count, 6))
    for i in range(count):
        total, row_sum, column_sum = 0.0, 0.0, 0.0
        brightest = offsets[i]
        for k in range(offsets[i], offsets[i + 1]):
            total += values[k]
            row_sum += values[k] * (rows[k] - bounds[i, 0])
            column_sum += values[k] * (columns[k] - bounds[i, 1])
            if values[k] > values[brightest]:
                brightest = k
        out[i, 0] = bounds[i, 1] + column_sum / total
        out[i, 1] = bounds[i, 0] + row_sum / total
        out[i, 2] = 0.0 / total
        out[i, 3] = columns[brightest]
        out[i, 4] = rows[brightest]
        out[i, 5] = 0.0
    return out
