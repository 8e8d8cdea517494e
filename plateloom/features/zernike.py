"""Zernike: moments up to degree 9 of an object's mask (AreaShape) and of its intensities (RadialDistribution).

The unit disk is the minimum enclosing circle of the pixel centers. A moment is the sum of weight * R_n^m(r) * exp(im phi)
with y = r cos phi and x = r sin phi, not multiplied by n + 1. Its magnitude is divided by the area of the circle (mask)
or by the number of pixels (intensities); the phase is atan2(real part, imaginary part), in this order.

Notes
-----
The corners that define the circle lie on it, and they count where x^2 + y^2 <= 1 as rounded. As in CellProfiler, the
circle is computed from positions in the image, its radius is the distance of the corner that the search ends with, and
so an object that is moved may gain or lose these pixels. Where several corners see a side of the hull under the same
angle, CellProfiler's choice is that of an unstable sort; here it is the one, of the first and the last along the hull,
that ends with the larger radius.
"""

import functools
from math import comb, factorial

import numpy as np

from plateloom.compilation import kernel

_DEGREE = 9
_INDICES = tuple((n, m) for n in range(_DEGREE + 1) for m in range(n % 2, n + 1, 2))
_POWERS = _DEGREE + 1

# Columns of an object that are summed as one block; a constant, so that the compiler knows that powers do not overlap.
_BLOCK = 128


def columns(channels, **options):
    """Column names without the compartment."""
    return [f"AreaShape_Zernike_{n}_{m}" for n, m in _INDICES] + [
        f"RadialDistribution_Zernike{part}_{channel}_{n}_{m}"
        for channel in channels
        for part in ("Magnitude", "Phase")
        for n, m in _INDICES
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
    ndarray of float64, shape (N, 30 + 60 C)
        Phases in [rad]; 0 where the moment is 0. An object of one pixel has no circle: NaN.
    """
    circles = _find_circles(index.offsets, index.rows, index.columns, index.bounds)
    return _measure_objects(
        index.values, index.offsets, index.rows, index.columns, index.bounds, circles, *_polynomials()
    )


@functools.cache
def _polynomials():
    """Write every Zernike polynomial as a sum of coefficient * y^q * x^p.

    Returns
    -------
    starts : ndarray of int64, shape (61,)
        Where the terms of a polynomial begin: the 30 real parts, then the 30 imaginary ones.
    terms : ndarray of int64, shape (K,)
        10 q + p.
    coefficients : ndarray of float64, shape (K,)
    """
    starts, terms, coefficients = [0], [], []
    for imaginary in (0, 1):
        for n, m in _INDICES:
            sums = {}
            for k in range((n - m) // 2 + 1):
                radial = (-1) ** k * factorial(n - k)
                radial //= factorial(k) * factorial((n + m) // 2 - k) * factorial((n - m) // 2 - k)
                squares = (n - m) // 2 - k
                for s in range(squares + 1):
                    for p in range(imaginary, m + 1, 2):
                        term = _POWERS * (m - p + 2 * (squares - s)) + p + 2 * s
                        coefficient = radial * comb(squares, s) * comb(m, p) * (-1) ** (p // 2)
                        sums[term] = sums.get(term, 0) + coefficient
            terms += sums
            coefficients += sums.values()
            starts.append(len(terms))
    return np.array(starts), np.array(terms), np.array(coefficients, float)


@kernel
def _find_circles(offsets, rows, columns, bounds):
    """Row and column of the center and radius [px] of every object's minimum enclosing circle: (N, 3)."""
    count = len(offsets) - 1
    circles = np.empty((count, 3))
    for i in range(count):
        first, last = offsets[i], offsets[i + 1]
        top, left = bounds[i, 0], bounds[i, 1]
        height, width = bounds[i, 2] - top, bounds[i, 3] - left
        # Per column the outermost of the pixels at the ends of a row: among them are all corners.
        uppers, lowers = np.full(width, height, np.int64), np.full(width, -1, np.int64)
        for k in range(first, last):
            if k == first or k == last - 1 or rows[k - 1] != rows[k] or rows[k + 1] != rows[k]:
                row, column = np.int64(rows[k] - top), columns[k] - left
                uppers[column] = min(uppers[column], row)
                lowers[column] = max(lowers[column], row)
        y, x = np.empty(2 * width, np.int64), np.empty(2 * width, np.int64)
        corners = 0
        for column in range(width):
            if uppers[column] < height:
                corners = _append_corner(y, x, 0, corners, uppers[column], column)
        turn = corners - 1
        for column in range(width - 1, -1, -1):
            if lowers[column] >= 0 and (column != x[turn] or lowers[column] != y[turn]):
                corners = _append_corner(y, x, turn, corners, lowers[column], column)
        # The way back ends where the way out began, unless the leftmost column has several pixels.
        if corners > 1 and y[corners - 1] == y[0] and x[corners - 1] == x[0]:
            corners -= 1
        y, x = y[:corners] + top, x[:corners] + left
        circle, other = _enclose(y, x, False), _enclose(y, x, True)
        circles[i, 0], circles[i, 1], circles[i, 2] = circle if circle[2] >= other[2] else other
    return circles


@kernel
def _append_corner(y, x, base, corners, row, column):
    """Append a point to the convex chain that begins at `base`, dropping corners that it makes flat or concave."""
    while corners >= base + 2:
        a, b = corners - 2, corners - 1
        if (x[b] - x[a]) * (row - y[b]) > (column - x[b]) * (y[b] - y[a]):
            break
        corners -= 1
    y[corners], x[corners] = row, column
    return corners + 1


@kernel
def _enclose(y, x, late):
    """Minimum circle around the corners of a convex polygon (Chrystal): center and radius.

    Of the corners that see a side under an acute angle, take the one with the smallest angle, of equals the first or
    the last. If the triangle is obtuse, go on with its longest side. Everything is an integer until the division.
    """
    if len(y) == 1:
        return float(y[0]), float(x[0]), 0.0
    a, b = 0, 1
    while True:
        apex, largest = -1, 0.0
        for v in range(len(y)):
            if v != a and v != b:
                dot = (y[a] - y[v]) * (y[b] - y[v]) + (x[a] - x[v]) * (x[b] - x[v])
                cross = (y[a] - y[v]) * (x[b] - x[v]) - (x[a] - x[v]) * (y[b] - y[v])
                cotangent = dot / abs(cross)
                if cotangent > largest or (late and apex >= 0 and cotangent == largest):
                    apex, largest = v, cotangent
        if apex < 0:
            return (y[a] + y[b]) / 2, (x[a] + x[b]) / 2, np.sqrt((y[a] - y[b]) ** 2 + (x[a] - x[b]) ** 2) / 2
        if (y[b] - y[a]) * (y[apex] - y[a]) + (x[b] - x[a]) * (x[apex] - x[a]) < 0:
            a = apex
        elif (y[a] - y[b]) * (y[apex] - y[b]) + (x[a] - x[b]) * (x[apex] - x[b]) < 0:
            b = apex
        else:
            break
    doubled_area, center_y, center_x = 0, 0, 0
    for u, v, w in ((a, b, apex), (b, apex, a), (apex, a, b)):
        square = y[u] ** 2 + x[u] ** 2
        doubled_area += x[u] * (y[v] - y[w])
        center_y += square * (x[w] - x[v])
        center_x += square * (y[v] - y[w])
    center_y, center_x = center_y / (2 * doubled_area), center_x / (2 * doubled_area)
    return center_y, center_x, np.sqrt((y[a] - center_y) ** 2 + (x[a] - center_x) ** 2)


@kernel
def _measure_objects(values, offsets, rows, columns, bounds, circles, starts, terms, coefficients):
    """Fill the (N, 30 + 60 C) measurements: the powers of y are summed down the columns, those of x over the columns."""
    count, size = len(offsets) - 1, len(starts) // 2
    area, widest = 0, 0
    for i in range(count):
        area = max(area, offsets[i + 1] - offsets[i])
        widest = max(widest, bounds[i, 3] - bounds[i, 1])
    runs, y, ones = np.empty((area, 3), np.int64), np.empty(area), np.ones(_BLOCK)
    x, occupied = np.empty(widest), np.empty(widest, np.bool_)
    sums, moments = np.zeros((1 + widest // _BLOCK, _POWERS * _BLOCK)), np.empty(_POWERS * _POWERS)
    out = np.empty((count, size * (1 + 2 * len(values))))
    for i in range(count):
        center_y, center_x, radius = circles[i]
        if radius == 0.0:
            out[i] = np.nan
            continue
        first, last, left, width = offsets[i], offsets[i + 1], bounds[i, 1], bounds[i, 3] - bounds[i, 1]
        for column in range(width):
            x[column] = (left + column - center_x) / radius
        found = _find_runs(rows[first:last], columns[first:last] - left, runs)
        occupied[:width] = False
        for k in range(found):
            begin, column, length = runs[k]
            y[k] = (rows[first + begin] - center_y) / radius
            # Only the ends of a run can lie outside the circle.
            while length > 0 and x[column] ** 2 + y[k] ** 2 > 1.0:
                begin, column, length = begin + 1, column + 1, length - 1
            while length > 0 and x[column + length - 1] ** 2 + y[k] ** 2 > 1.0:
                length -= 1
            runs[k] = begin, column, length
            occupied[column : column + length] = True
        for c in range(1 + len(values)):
            for k in range(found):
                begin, column, length = runs[k]
                weights = values[c - 1, first + begin : first + begin + length] if c else ones[:length]
                _add_powers(weights, y[k], sums[column // _BLOCK, column % _BLOCK :])
            _sum_columns(sums, x[:width], occupied, moments)
            norm = last - first if c else np.pi * radius**2
            for z in range(size):
                real = _evaluate(z, moments, starts, terms, coefficients)
                imaginary = _evaluate(size + z, moments, starts, terms, coefficients)
                magnitude = np.sqrt(real * real + imaginary * imaginary) / norm
                if c:
                    out[i, size * (2 * c - 1) + z] = magnitude
                    out[i, size * 2 * c + z] = np.arctan2(real, imaginary)
                else:
                    out[i, z] = magnitude
    return out


@kernel
def _find_runs(rows, columns, runs):
    """Fill in begin, column and length of the runs of pixels side by side in a row and a block; return their number."""
    found, end = 0, 0
    while end < len(rows):
        begin, column = end, np.int64(columns[end])
        limit = min(len(rows), begin + _BLOCK - column % _BLOCK)
        while end < limit and rows[end] == rows[begin] and columns[end] - column == end - begin:
            end += 1
        runs[found] = begin, column, end - begin
        found += 1
    return found


@kernel
def _add_powers(weights, y, sums):
    """Add a run of weights, times the powers of y, to the sums of its columns."""
    for k in range(len(weights)):
        term = weights[k]
        for q in range(_POWERS):
            sums[q * _BLOCK + k] += term
            term *= y


@kernel
def _sum_columns(sums, x, occupied, moments):
    """Turn column sums into moments, sums of weight * y^q * x^p, and clear them for the next channel."""
    moments[:] = 0.0
    for column in range(len(x)):
        if occupied[column]:
            block, place = column // _BLOCK, column % _BLOCK
            for q in range(_POWERS):
                term = sums[block, q * _BLOCK + place]
                sums[block, q * _BLOCK + place] = 0.0
                for p in range(_POWERS - q):
                    moments[q * _POWERS + p] += term
                    term *= x[column]


@kernel
def _evaluate(polynomial, moments, starts, terms, coefficients):
    """Combine the moments into the sum of a polynomial over the object."""
    total = 0.0
    for k in range(starts[polynomial], starts[polynomial + 1]):
        total += coefficients[k] * moments[terms[k]]
    return total
