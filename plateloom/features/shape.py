"""AreaShape: size, outline, radii, hull and moments of an object.

Notes
-----
Definitions are those of scikit-image's regionprops, which CellProfiler calls: the perimeter after Benkrid and Crookes
(weights of outline configurations), the Euler number with 8-connectivity, moments in the bounding box. Feret diameters
are of the hull of the pixel centers, the convex area that of the hull of the pixels' edge midpoints. Everything outside
the object, the image border included, is outside for outline and radii.
"""

import numpy as np

from plateloom.compilation import kernel

_SIZES = (
    "Area",
    "BoundingBoxArea",
    "BoundingBoxMaximum_X",
    "BoundingBoxMaximum_Y",
    "BoundingBoxMinimum_X",
    "BoundingBoxMinimum_Y",
    "Center_X",
    "Center_Y",
    "Compactness",
    "ConvexArea",
    "Eccentricity",
    "EquivalentDiameter",
    "EulerNumber",
    "Extent",
    "FormFactor",
    "MajorAxisLength",
    "MaxFeretDiameter",
    "MaximumRadius",
    "MeanRadius",
    "MedianRadius",
    "MinFeretDiameter",
    "MinorAxisLength",
    "Orientation",
    "Perimeter",
    "Solidity",
)
_MOMENTS = (
    *(f"SpatialMoment_{p}_{q}" for p in range(3) for q in range(4)),
    *(f"CentralMoment_{p}_{q}" for p in range(3) for q in range(4)),
    *(f"NormalizedMoment_{p}_{q}" for p in range(4) for q in range(4)),
    *(f"HuMoment_{k}" for k in range(7)),
    *(f"InertiaTensor_{i}_{j}" for i in range(2) for j in range(2)),
    *(f"InertiaTensorEigenvalues_{i}" for i in range(2)),
)


def columns(channels, **options):
    """Column names without the compartment; no channel appears in them."""
    return [f"AreaShape_{measurement}" for measurement in _SIZES + _MOMENTS]


def measure(index, image, channels, **options):
    """Measure the columns.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`; not looked at.

    Returns
    -------
    ndarray of float64, shape (N, 78)
        Lengths in [px], areas in [px²], the orientation in [degree]. FormFactor is infinite where the perimeter is 0
        (objects of up to 3 pixels), NormalizedMoment_0_0, _0_1 and _1_0 are always NaN.
    """
    area = index.areas.astype(np.float64)
    top, left, bottom, right = index.bounds.T.astype(np.float64)
    perimeter, euler = _trace_outlines(index.objects, index.offsets, index.rows, index.columns, index.surround)
    height, width = index.objects.shape[0] - 2, index.objects.shape[1] - 2
    radii = _measure_radii(index.offsets, index.rows, index.columns, index.depths, height, width)
    convex_area, min_feret, max_feret = _measure_hulls(index.offsets, index.rows, index.columns, index.bounds)
    spatial, central = _sum_moments(index.offsets, index.rows, index.columns, index.bounds)

    inertia = _inertia_tensor(central)
    major, minor = _eigenvalues(inertia)
    box = (bottom - top) * (right - left)
    sizes = [
        area,
        box,
        right,
        bottom,
        left,
        top,
        index.centers[:, 1],
        index.centers[:, 0],
        perimeter**2 / (4 * np.pi * area),
        convex_area,
        np.sqrt(1 - np.divide(minor, major, out=np.ones_like(major), where=major > 0)),
        np.sqrt(4 * area / np.pi),
        euler,
        area / box,
        np.divide(4 * np.pi * area, perimeter**2, out=np.full_like(area, np.inf), where=perimeter > 0),
        4 * np.sqrt(major),
        max_feret,
        *radii.T,
        min_feret,
        4 * np.sqrt(minor),
        _orientation(inertia),
        perimeter,
        area / convex_area,
    ]
    normalized = _normalize(central)
    return np.column_stack(
        [
            *sizes,
            spatial[:, :3].reshape(-1, 12),
            central[:, :3].reshape(-1, 12),
            normalized.reshape(-1, 16),
            _hu_moments(normalized),
            inertia.reshape(-1, 4),
            major,
            minor,
        ]
    )


def _inertia_tensor(central):
    """Tensor (N, 2, 2) along rows and columns, from central moments."""
    inertia = np.empty((len(central), 2, 2))
    inertia[:, 0, 0] = central[:, 0, 2]
    inertia[:, 1, 1] = central[:, 2, 0]
    inertia[:, 0, 1] = inertia[:, 1, 0] = -central[:, 1, 1]
    return inertia / central[:, 0, 0, None, None]


def _eigenvalues(inertia):
    """Larger and smaller eigenvalue; rounding must not make the smaller one negative."""
    middle = (inertia[:, 0, 0] + inertia[:, 1, 1]) / 2
    spread = np.hypot((inertia[:, 0, 0] - inertia[:, 1, 1]) / 2, inertia[:, 0, 1])
    return middle + spread, np.maximum(middle - spread, 0.0)


def _orientation(inertia):
    """Angle of the major axis [degree]; equal moments along both axes get CellProfiler's sign, not the limit's."""
    a, b, c = inertia[:, 0, 0], inertia[:, 0, 1], inertia[:, 1, 1]
    return np.where(a == c, np.where(b < 0, -45.0, 45.0), np.degrees(0.5 * np.arctan2(-2 * b, c - a)))


def _normalize(central):
    """Scale-invariant moments (N, 4, 4); NaN below the second order."""
    order = np.add.outer(np.arange(4), np.arange(4))
    normalized = central / central[:, :1, :1] ** (order / 2 + 1)
    normalized[:, order < 2] = np.nan
    return normalized


def _hu_moments(normalized):
    """Hu's seven invariants under rotation (doi:10.1109/TIT.1962.1057692)."""
    n = normalized.transpose(1, 2, 0)
    difference, sum_30, sum_03 = n[2, 0] - n[0, 2], n[3, 0] + n[1, 2], n[2, 1] + n[0, 3]
    skew_30, skew_03 = n[3, 0] - 3 * n[1, 2], 3 * n[2, 1] - n[0, 3]
    cubic_30, cubic_03 = sum_30 * (sum_30**2 - 3 * sum_03**2), sum_03 * (3 * sum_30**2 - sum_03**2)
    return np.column_stack(
        [
            n[2, 0] + n[0, 2],
            difference**2 + 4 * n[1, 1] ** 2,
            skew_30**2 + skew_03**2,
            sum_30**2 + sum_03**2,
            skew_30 * cubic_30 + skew_03 * cubic_03,
            difference * (sum_30**2 - sum_03**2) + 4 * n[1, 1] * sum_30 * sum_03,
            skew_03 * cubic_30 - skew_30 * cubic_03,
        ]
    )


@kernel
def _sum_moments(offsets, rows, columns, bounds):
    """Spatial and central moments (N, 4, 4) in the bounding box; first index row, second column."""
    count = len(offsets) - 1
    spatial, central = np.zeros((count, 4, 4)), np.zeros((count, 4, 4))
    for i in range(count):
        local_rows = rows[offsets[i] : offsets[i + 1]] - bounds[i, 0]
        local_columns = columns[offsets[i] : offsets[i + 1]] - bounds[i, 1]
        _add_powers(local_rows, local_columns, 0.0, 0.0, spatial[i])
        middle_row, middle_column = spatial[i, 1, 0] / spatial[i, 0, 0], spatial[i, 0, 1] / spatial[i, 0, 0]
        _add_powers(local_rows, local_columns, middle_row, middle_column, central[i])
    return spatial, central


@kernel
def _add_powers(rows, columns, origin_row, origin_column, moments):
    """Add the powers of the distance from an origin, a row of pixels at a time."""
    k = 0
    while k < len(rows):
        row = rows[k]
        ones, linear, square, cubic = 0.0, 0.0, 0.0, 0.0
        while k < len(rows) and rows[k] == row:
            x = columns[k] - origin_column
            ones += 1.0
            linear += x
            square += x * x
            cubic += x * x * x
            k += 1
        y, power = row - origin_row, 1.0
        for p in range(4):
            moments[p, 0] += power * ones
            moments[p, 1] += power * linear
            moments[p, 2] += power * square
            moments[p, 3] += power * cubic
            power *= y


@kernel
def _trace_outlines(objects, offsets, rows, columns, surround):
    """Perimeter and Euler number."""
    weights = np.zeros(50)
    # An outline pixel counts 1, its 4-neighbors on the outline 2 each, its diagonal ones 10 each.
    for code in (5, 7, 15, 17, 25, 27):
        weights[code] = 1.0
    for code in (21, 33):
        weights[code] = np.sqrt(2.0)
    for code in (13, 23):
        weights[code] = (1.0 + np.sqrt(2.0)) / 2.0
    # 12 × what the four 2 × 2 squares around a pixel contribute to the Euler number, shared by the squares' pixels:
    # (squares with one pixel - with three - 2 × with two diagonal ones) / 4.
    shares = np.zeros(256, np.int64)
    for code in range(256):
        for corner in range(0, 8, 2):
            side = (code >> corner) & 1
            diagonal = (code >> (corner + 1)) & 1
            other_side = (code >> ((corner + 2) % 8)) & 1
            if side + diagonal + other_side == 0:
                shares[code] += 3
            elif side + diagonal + other_side == 2:
                shares[code] -= 1
            elif diagonal == 1 and side + other_side == 0:
                shares[code] -= 3
    count = len(offsets) - 1
    perimeter, euler = np.zeros(count), np.zeros(count)
    for i in range(count):
        histogram, share = np.zeros(50, np.int64), 0
        for k in range(offsets[i], offsets[i + 1]):
            share += shares[surround[k]]
            if surround[k] & 85 == 85:
                continue
            code, number = 1, i + 1
            for r in range(rows[k], rows[k] + 3):
                for c in range(columns[k], columns[k] + 3):
                    if objects[r, c] != number or (r == rows[k] + 1 and c == columns[k] + 1):
                        continue
                    if (
                        objects[r - 1, c] != number
                        or objects[r + 1, c] != number
                        or objects[r, c - 1] != number
                        or objects[r, c + 1] != number
                    ):
                        code += 2 if r == rows[k] + 1 or c == columns[k] + 1 else 10
            histogram[code] += 1
        for code in range(50):
            perimeter[i] += histogram[code] * weights[code]
        euler[i] = share / 12
    return perimeter, euler


@kernel
def _measure_radii(offsets, rows, columns, depths, height, width):
    """Maximum, mean and median distance from an object's pixels to the nearest one outside; squared, they are counted."""
    count = len(offsets) - 1
    squares = np.empty(len(rows), np.int32)
    out = np.empty((count, 3))
    for i in range(count):
        first, last = offsets[i], offsets[i + 1]
        farthest = 0
        for k in range(first, last):
            border = np.int64(min(rows[k] + 1, height - rows[k], columns[k] + 1, width - columns[k]))
            squares[k] = min(border * border, np.int64(depths[k]))
            farthest = max(farthest, squares[k])
        histogram = np.zeros(farthest + 1, np.int64)
        for k in range(first, last):
            histogram[squares[k]] += 1
        area = last - first
        seen, total, lower, upper = 0, 0.0, -1, -1
        for square in range(len(histogram)):
            if histogram[square] == 0:
                continue
            seen += histogram[square]
            total += histogram[square] * np.sqrt(square)
            if lower < 0 and seen > (area - 1) // 2:
                lower = square
            if upper < 0 and seen > area // 2:
                upper = square
        out[i, 0], out[i, 1] = np.sqrt(farthest), total / area
        out[i, 2] = (np.sqrt(lower) + np.sqrt(upper)) / 2
    return out


@kernel
def _measure_hulls(offsets, rows, columns, bounds):
    """Convex area, minimum and maximum Feret diameter, in integers until the last division."""
    count = len(offsets) - 1
    convex_area, min_feret, max_feret = np.empty(count), np.empty(count), np.empty(count)
    for i in range(count):
        top, left = bounds[i, 0], bounds[i, 1]
        height, width = bounds[i, 2] - top, bounds[i, 3] - left
        # The first and, mirrored, the last pixel of every row; `width` where the object has no pixel in this row.
        begins, mirrored_ends = np.full(height, width, np.int64), np.full(height, width, np.int64)
        for k in range(offsets[i], offsets[i + 1]):
            r, c = rows[k] - top, np.int64(columns[k] - left)
            begins[r] = min(begins[r], c)
            mirrored_ends[r] = min(mirrored_ends[r], width - 1 - c)
        inside = 0
        hull_begins, hull_ends = _first_hull_columns(begins, width), _first_hull_columns(mirrored_ends, width)
        for r in range(height):
            inside += width - hull_begins[r] - hull_ends[r]
        convex_area[i] = inside
        # Down one side of the hull of the pixel centers and up the other.
        y, x = _chain(np.arange(height), begins, width)
        y_back, x_back = _chain(np.arange(height), mirrored_ends, width)
        x_back = width - 1 - x_back
        low, high = (1 if x[0] == x_back[0] else 0), len(y_back) - (1 if x[-1] == x_back[-1] else 0)
        y = np.concatenate((y, y_back[low:high][::-1]))
        x = np.concatenate((x, x_back[low:high][::-1]))
        min_feret[i], max_feret[i] = _feret_diameters(y, x)
    return convex_area, min_feret, max_feret


@kernel
def _chain(y, x, absent):
    """Keep the corners of the convex chain on the side of small x; y ascends, points at `absent` are none."""
    kept = np.empty(len(y), np.int64)
    n = 0
    for k in range(len(y)):
        if x[k] == absent:
            continue
        while n >= 2:
            a, b = kept[n - 2], kept[n - 1]
            if (x[b] - x[a]) * (y[k] - y[a]) < (x[k] - x[a]) * (y[b] - y[a]):
                break
            n -= 1
        kept[n] = k
        n += 1
    return y[kept[:n]], x[kept[:n]]


@kernel
def _first_hull_columns(begins, absent):
    """First column per row whose center is in the hull of the pixels' edge midpoints, the hull's border included.

    In half pixels, a row's first pixel at column c has its midpoints at 2c - 1 in its own row and at 2c half a row
    above and below.
    """
    height = len(begins)
    nowhere = 2 * absent
    y, x = np.arange(-1, 2 * height), np.full(2 * height + 1, nowhere, np.int64)
    for r in range(height):
        if begins[r] != absent:
            x[2 * r] = min(x[2 * r], 2 * begins[r])
            x[2 * r + 1] = 2 * begins[r] - 1
            x[2 * r + 2] = min(x[2 * r + 2], 2 * begins[r])
    corner_y, corner_x = _chain(y, x, nowhere)
    first = np.empty(height, np.int64)
    k = 0
    for r in range(height):
        while corner_y[k + 1] < 2 * r:
            k += 1
        run, rise = corner_y[k + 1] - corner_y[k], corner_x[k + 1] - corner_x[k]
        # Ceiling of the border's column: -((-a) // b).
        first[r] = -((-(corner_x[k] * run + rise * (2 * r - corner_y[k]))) // (2 * run))
    return first


@kernel
def _feret_diameters(y, x):
    """Smallest and largest width of a convex polygon of integer corners; 0 for a point, smallest 0 for a line."""
    corners = len(y)
    largest = 0
    for a in range(corners):
        for b in range(a + 1, corners):
            largest = max(largest, (y[a] - y[b]) ** 2 + (x[a] - x[b]) ** 2)
    smallest = 0.0 if corners < 3 else np.inf
    for a in range(corners if corners > 2 else 0):
        b = (a + 1) % corners
        down, right = y[b] - y[a], x[b] - x[a]
        farthest = 0
        for c in range(corners):
            farthest = max(farthest, abs((x[c] - x[a]) * down - (y[c] - y[a]) * right))
        smallest = min(smallest, farthest / np.sqrt(down * down + right * right))
    return smallest, np.sqrt(largest)
