"""Grow labels over an image along the cheapest paths, exactly and within a known distance."""

import numpy as np
from numba import njit

UNIT = 16
"""Cost of one step to a direct neighbour on a flat image; costs are whole numbers, so that ties are ties everywhere."""


@njit(cache=True, nogil=True)
def propagate_labels(seeds, allowed, image, intensity_step, max_cost):
    """Give each allowed pixel the label of the seed that reaches it at the least cost.

    A step of length d over an intensity difference i costs ``16 d sqrt(1 + (i / intensity_step)²)``, the metric of
    CellProfiler's Propagation. Of two labels at equal cost the smaller wins. As costs add up along a path, a pixel's
    label depends on nothing farther away than ``max_cost / 16`` px.

    Parameters
    ----------
    seeds : ndarray of uint32, shape (Y, X)
        Labels to grow; 0 is free.
    allowed : ndarray of bool, shape (Y, X)
        Where labels may grow.
    image : ndarray of float32, shape (Y, X)
        Intensities.
    intensity_step : float
        Intensity difference that makes a step as costly as a detour of 41 %; infinite to ignore the image.
    max_cost : int
        Labels grow no farther than this; 16 per pixel on a flat image.

    Returns
    -------
    ndarray of uint32, shape (Y, X)
        Grown labels; 0 where none came.

    Notes
    -----
    Jones, Carpenter and Golland, doi:10.1007/11569541_54. Buckets of whole-numbered costs take the place of a heap.
    """
    height, width = seeds.shape
    labels = seeds.copy().ravel()
    free = allowed.ravel()
    value = image.ravel()
    n = height * width
    cost = np.full(n, max_cost + 1, np.int32)
    # Each bucket is a doubly linked list through the pixels.
    first = np.full(max_cost + 1, -1, np.int32)
    after = np.full(n, -1, np.int32)
    before = np.full(n, -1, np.int32)
    for here in range(n):
        if labels[here] != 0:
            cost[here] = 0
            y, x = here // width, here % width
            # Only seeds that have something to give enter the queue.
            useful = False
            for ny in range(max(y - 1, 0), min(y + 2, height)):
                for nx in range(max(x - 1, 0), min(x + 2, width)):
                    there = ny * width + nx
                    useful = useful or (free[there] and labels[there] == 0)
            if useful:
                after[here] = first[0]
                if first[0] >= 0:
                    before[first[0]] = here
                first[0] = here
    inverse = 1.0 / intensity_step
    for spent in range(max_cost + 1):
        while first[spent] >= 0:
            here = first[spent]
            first[spent] = after[here]
            if first[spent] >= 0:
                before[first[spent]] = -1
            y, x = here // width, here % width
            for ny in range(max(y - 1, 0), min(y + 2, height)):
                for nx in range(max(x - 1, 0), min(x + 2, width)):
                    there = ny * width + nx
                    if not free[there] or cost[there] <= spent:
                        continue
                    length = 16.0 if ny == y or nx == x else 22.627416997969522
                    rise = (float(value[there]) - float(value[here])) * inverse
                    total = spent + int(length * np.sqrt(1.0 + min(rise * rise, 1e8)) + 0.5)
                    if total > max_cost or total > cost[there]:
                        continue
                    if total == cost[there]:
                        labels[there] = min(labels[there], labels[here])
                        continue
                    if cost[there] <= max_cost:
                        if before[there] >= 0:
                            after[before[there]] = after[there]
                        else:
                            first[cost[there]] = after[there]
                        if after[there] >= 0:
                            before[after[there]] = before[there]
                    cost[there] = total
                    labels[there] = labels[here]
                    before[there] = -1
                    after[there] = first[total]
                    if first[total] >= 0:
                        before[first[total]] = there
                    first[total] = there
    return labels.reshape(height, width)
