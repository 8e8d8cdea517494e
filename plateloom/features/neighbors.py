"""Neighbors: which objects of the same compartment touch, or are within a distance, and the two closest ones.

The closest objects are those with the closest centers, whether they are neighbors or not; of two equally far ones the
smaller label is the closer.
"""

import numpy as np

from plateloom.compilation import kernel

_MEASUREMENTS = (
    "NumberOfNeighbors",
    "PercentTouching",
    "FirstClosestObjectNumber",
    "FirstClosestDistance",
    "SecondClosestObjectNumber",
    "SecondClosestDistance",
    "AngleBetweenNeighbors",
)


def columns(channels, *, neighbor_distance=5, **options):
    """Column names without the compartment."""
    return [
        f"Neighbors_{measurement}_{scale}" for scale in ("Adjacent", neighbor_distance) for measurement in _MEASUREMENTS
    ]


def measure(index, image, channels, *, neighbor_distance=5, **options):
    """Measure the columns.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`.
    neighbor_distance : int
        Objects are neighbors from this distance on [px].

    Returns
    -------
    ndarray of float64, shape (N, 14)
        Distances in [px], the angle in [degree], touching in [%] of the object's outline. What needs a first or second
        other object is 0 where there is none, as in CellProfiler; the angle is NaN where a center coincides.
    """
    if neighbor_distance != int(neighbor_distance) or neighbor_distance < 1:
        raise ValueError(f"neighbor_distance is a whole number of pixels from 1 on, found {neighbor_distance!r}.")
    # Sorted by row, the search for the closest ends where the rows alone are too far.
    closest = _find_closest(index.centers, np.argsort(index.centers[:, 0], kind="stable"), index.labels)
    blocks = []
    for distance in (1, int(neighbor_distance)):
        touching = _find_touching(index.objects, index.offsets, index.rows, index.columns, index.surround, distance)
        if len(index.labels) < 2:
            touching[:] = 0.0
        blocks += [touching, closest]
    return np.hstack(blocks)


@kernel
def _find_closest(centers, order, labels):
    """Label and distance of the closest and the second closest center, and the angle between them."""
    count = len(centers)
    out = np.zeros((count, 5))
    for position in range(count):
        i = order[position]
        first, second = -1, -1
        first_square, second_square = np.inf, np.inf
        for direction in (-1, 1):
            p = position + direction
            while 0 <= p < count:
                j = order[p]
                down, right = centers[j, 0] - centers[i, 0], centers[j, 1] - centers[i, 1]
                if down * down > second_square:
                    break
                square = down * down + right * right
                if square < first_square or (square == first_square and j < first):
                    second, second_square = first, first_square
                    first, first_square = j, square
                elif square < second_square or (square == second_square and j < second):
                    second, second_square = j, square
                p += direction
        if first >= 0:
            out[i, 0], out[i, 1] = labels[first], np.sqrt(first_square)
        if second >= 0:
            out[i, 2], out[i, 3] = labels[second], np.sqrt(second_square)
            dot = (centers[first, 0] - centers[i, 0]) * (centers[second, 0] - centers[i, 0]) + (
                centers[first, 1] - centers[i, 1]
            ) * (centers[second, 1] - centers[i, 1])
            # Rounding carries the cosine of collinear centers beyond 1.
            cosine = dot / np.sqrt(first_square * second_square)
            out[i, 4] = np.degrees(np.arccos(min(max(cosine, -1.0), 1.0))) if cosine == cosine else np.nan
    return out


@kernel
def _find_touching(objects, offsets, rows, columns, surround, distance):
    """Count the neighbors, and the share of the outline that touches one.

    The outline has 8-neighbors that differ, or lies on the image border. Neighbors have pixels within `distance`; an
    outline pixel touches where another object is within `distance` + 1/2 (CellProfiler's two disks).
    """
    height, width = objects.shape
    count = len(offsets) - 1
    out = np.zeros((count, 2))
    met = np.zeros(count + 1, np.int64)
    limit, touching_limit = distance * distance, (distance + 0.5) ** 2
    reach = np.empty(2 * distance + 1, np.int64)
    for step in range(-distance, distance + 1):
        reach[step + distance] = int(np.sqrt(touching_limit - step * step))
    for i in range(count):
        outline, touched, neighbors = 0, 0, 0
        for k in range(offsets[i], offsets[i + 1]):
            if surround[k] == 255:
                continue
            outline += 1
            row, column = rows[k] + 1, columns[k] + 1
            touches = False
            for r in range(max(row - distance, 1), min(row + distance, height - 2) + 1):
                span = min(reach[r - row + distance], distance)
                for c in range(max(column - span, 1), min(column + span, width - 2) + 1):
                    other = objects[r, c]
                    if other == 0 or other == i + 1:
                        continue
                    touches = True
                    if met[other] != i + 1 and (r - row) ** 2 + (c - column) ** 2 <= limit:
                        met[other] = i + 1
                        neighbors += 1
            touched += touches
        out[i, 0], out[i, 1] = neighbors, touched * 100 / outline
    return out
