"""RadialDistribution: how intensity is spread between an object's center and its edge, in four rings of eight wedges.

The center is the pixel farthest from the edge, of several the first in row-major order; the border of the image is no
edge. A pixel lies in the ring of d / (d + e + 0.001), with d its distance to the center and e to the nearest pixel
outside. d is the length of the shortest path inside the object, with steps of 1 and √2 between 8-neighbors; pixels that
no path reaches (another piece of the object) count nowhere.
"""

import numpy as np

from plateloom.compilation import kernel

_RINGS, _WEDGES = 4, 8
_MEASUREMENTS = ("FracAtD", "MeanFrac", "RadialCV")

# Path lengths are integers, so that paths of the same steps are equally long whatever their order: sweeps that look for
# shorter ones then end.
_UNIT = 1 << 38
_DIAGONAL = round(2**0.5 * _UNIT)
_UNREACHED = 1 << 62


def columns(channels, **options):
    """Column names without the compartment."""
    return [
        f"RadialDistribution_{measurement}_{channel}_{ring}of{_RINGS}"
        for channel in channels
        for measurement in _MEASUREMENTS
        for ring in range(1, _RINGS + 1)
    ]


def measure(index, image, channels, **options):
    """Measure the columns.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`.

    Returns
    -------
    ndarray of float64, shape (N, 12 C)
        FracAtD, the share of the object's intensity in a ring, MeanFrac, the same per share of pixels, and RadialCV, the
        coefficient of variation of the wedges' mean intensities. A ring without pixels has 0 in all of them; FracAtD
        and MeanFrac are NaN where the object has no intensity.
    """
    depths = index.depths
    if len(index.labels) == 1 and len(depths) == image.shape[1] * image.shape[2]:
        # Without any edge CellProfiler measures from just above the first pixel.
        depths = (index.rows + 1) ** 2 + index.columns**2
    cells, counts = _divide_objects(index.offsets, index.runs, index.rows, index.columns, index.bounds, depths)
    out = np.empty((len(index.labels), len(channels), len(_MEASUREMENTS), _RINGS))
    for c in range(len(channels)):
        _measure_channel(index.values[c], index.offsets, cells, counts, out[:, c])
    return out.reshape(len(index.labels), len(channels) * len(_MEASUREMENTS) * _RINGS)


@kernel
def _divide_objects(offsets, runs, rows, columns, bounds, depths):
    """Number the ring and wedge of every pixel (8 × ring + wedge, 32 for none) and count the pixels in each."""
    count = len(offsets) - 1
    height, width = 0, 0
    for i in range(count):
        height, width = max(height, bounds[i, 2] - bounds[i, 0]), max(width, bounds[i, 3] - bounds[i, 1])
    paths = np.full((height + 2, width + 2), _UNREACHED, np.int64)
    cells = np.empty(len(rows), np.uint8)
    counts = np.zeros((count, _RINGS * _WEDGES + 1), np.int64)
    first_run = 0
    for i in range(count):
        last_run = first_run
        while runs[last_run] < offsets[i + 1]:
            last_run += 1
        center = offsets[i]
        for k in range(offsets[i], offsets[i + 1]):
            if depths[k] > depths[center]:
                center = k
        # Positions in `paths`, which has a frame.
        top, left = np.int64(bounds[i, 0] - 1), np.int64(bounds[i, 1] - 1)
        _find_paths(runs[first_run : last_run + 1], rows, columns, top, left, center, paths)
        for j in range(first_run, last_run):
            first, n = runs[j], runs[j + 1] - runs[j]
            here = paths[rows[first] - top, columns[first] - left :][:n]
            down, right = rows[first] - rows[center], columns[first] - columns[center]
            for k in range(n):
                cell = _RINGS * _WEDGES
                if here[k] < _UNREACHED:
                    path = here[k] / _UNIT
                    ring = int(path / (path + np.sqrt(depths[first + k]) + 0.001) * _RINGS)
                    wedge = (down > 0) + 2 * (right + k > 0) + 4 * (abs(down) > abs(right + k))
                    cell = _WEDGES * ring + wedge
                cells[first + k] = cell
                counts[i, cell] += 1
            here[:] = _UNREACHED
        first_run = last_run
    return cells, counts


@kernel
def _find_paths(runs, rows, columns, top, left, center, paths):
    """Fill in the lengths of the shortest paths from the center: down and up the object until nothing gets shorter."""
    height = rows[runs[-1] - 1] - top + 2
    # Rows with news for the one below, and for the one above.
    news_down, news_up = np.zeros(height, np.bool_), np.zeros(height, np.bool_)
    for j in range(len(runs) - 1):
        if runs[j] <= center < runs[j + 1]:
            row = rows[center] - top
            here = paths[row, columns[runs[j]] - left :][: runs[j + 1] - runs[j]]
            here[center - runs[j]] = 0
            _walk_along(here)
            news_down[row] = news_up[row] = True
    _sweep(runs, rows, columns, top, left, paths, 1, news_down, news_up)
    while _sweep(runs, rows, columns, top, left, paths, -1, news_up, news_down):
        if not _sweep(runs, rows, columns, top, left, paths, 1, news_down, news_up):
            break


@kernel
def _sweep(runs, rows, columns, top, left, paths, direction, news, news_back):
    """Pass the news of all rows on in one direction; whether any path became shorter."""
    shortened = False
    last = len(runs) - 2
    for step in range(last + 1):
        j = step if direction > 0 else last - step
        first, n = runs[j], runs[j + 1] - runs[j]
        row, column = rows[first] - top, columns[first] - left
        if not news[row - direction]:
            continue
        here, before = paths[row, column:][:n], paths[row - direction, column - 1 :][: n + 2]
        if _step_over(here, before):
            _walk_along(here)
            news[row] = news_back[row] = shortened = True
    news[:] = False
    return shortened


@kernel
def _step_over(here, before):
    """Shorten the paths of a run by steps from the row before, which begins a pixel to the left; whether any was."""
    shortened = False
    for k in range(len(here)):
        path = min(before[k + 1] + _UNIT, min(before[k], before[k + 2]) + _DIAGONAL)
        shortened |= path < here[k]
        here[k] = min(path, here[k])
    return shortened


@kernel
def _walk_along(here):
    """Shorten the paths of a run by steps within it."""
    for k in range(1, len(here)):
        here[k] = min(here[k], here[k - 1] + _UNIT)
    for k in range(len(here) - 2, -1, -1):
        here[k] = min(here[k], here[k + 1] + _UNIT)


@kernel
def _measure_channel(values, offsets, cells, counts, out):
    """Fill the (N, 3, 4) measurements of one channel."""
    for i in range(len(offsets) - 1):
        sums = np.zeros(_RINGS * _WEDGES + 1)
        for k in range(offsets[i], offsets[i + 1]):
            sums[cells[k]] += values[k]
        total, area = 0.0, 0
        for cell in range(_RINGS * _WEDGES):
            total += sums[cell]
            area += counts[i, cell]
        for ring in range(_RINGS):
            ring_sum, ring_area, mean, wedges = 0.0, 0, 0.0, 0
            for cell in range(_WEDGES * ring, _WEDGES * (ring + 1)):
                if counts[i, cell]:
                    ring_sum += sums[cell]
                    ring_area += counts[i, cell]
                    mean += sums[cell] / counts[i, cell]
                    wedges += 1
            mean /= max(wedges, 1)
            squares = 0.0
            for cell in range(_WEDGES * ring, _WEDGES * (ring + 1)):
                if counts[i, cell]:
                    squares += (sums[cell] / counts[i, cell] - mean) ** 2
            deviation = np.sqrt(squares / max(wedges, 1))
            share = ring_sum / total
            out[i, 0, ring] = share
            out[i, 1, ring] = share / (ring_area / area + np.finfo(np.float64).eps)
            out[i, 2, ring] = deviation / mean if mean != 0.0 else deviation
