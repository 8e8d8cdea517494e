"""Grow labels over an image as CellProfiler's Propagation does: the same paths, costs and labels, within a known distance."""

import numpy as np

from plateloom.compilation import kernel

_NEAR = 4e-16  # of a cost: what differs by less may be a tie, two neighboring floats among them


def propagate_labels(seeds, allowed, image, weight, max_cost):
    """Give each allowed pixel the label of the seed that reaches it at the least cost.

    A step of length d [px] costs ``sqrt(D² + d² weight²)``, D being the sum of absolute differences between the 3 × 3 pixels
    around its two ends. Labels and costs are those of centrosome's ``propagate(image, seeds, allowed | (seeds > 0), weight)``,
    bit for bit, wherever a pixel costs no more than `max_cost`; the others stay free. As each step costs at least `weight`, a
    pixel depends on nothing farther away than ``max_cost / weight + 1`` px. Of two labels at equal cost, that comes first
    whose last step began at the lesser cost, then the smaller label, then the first pixel in the raster.

    Parameters
    ----------
    seeds : ndarray of uint32, shape (Y, X)
        Labels to grow; 0 is free.
    allowed : ndarray of bool, shape (Y, X)
        Where labels may grow.
    image : ndarray of float, shape (Y, X)
        Intensities.
    weight : float
        Cost of a step to a direct neighbor where the image is flat; above 0.
    max_cost : float
        Labels grow no farther than this.

    Returns
    -------
    labels : ndarray of uint32, shape (Y, X)
        Grown labels; 0 where none came.
    costs : ndarray of float64, shape (Y, X)
        What it cost to reach each pixel; 0 in seeds, infinite where no label came.

    Notes
    -----
    Jones, Carpenter and Golland, doi:10.1007/11569541_54. Where they take a heap, pixels lie here in buckets narrower than the
    shortest step: none of a bucket can improve another of it, so that their order is of no matter. It is looked at where
    costs tie, once all that could have a say is settled.
    """
    edged = np.pad(image, 1, mode="edge")
    labels = np.pad(seeds, 1)
    costs = np.full(edged.shape, -1.0)
    inner = costs[1:-1, 1:-1]
    inner[allowed] = np.inf
    inner[seeds > 0] = 0.0
    _grow(labels.ravel(), costs.ravel(), edged.ravel(), edged.shape[1], float(weight), float(max_cost))
    inner[inner < 0] = np.inf
    return labels[1:-1, 1:-1], inner


@kernel
def _grow(labels, costs, image, width, weight, max_cost):
    """Grow in place, on arrays with a rim of one pixel; costs are negative where nothing may grow."""
    per_cost = 2.0 / weight
    # Each bucket is a doubly linked list through the pixels.
    first = np.full(int(max_cost * per_cost) + 1, -1, np.int32)
    after = np.full(costs.size, -1, np.int32)
    before = np.full(costs.size, -1, np.int32)
    tied = np.zeros(costs.size, np.bool_)
    for here in range(costs.size):
        if costs[here] == 0.0:
            after[here] = first[0]
            first[0] = here
    for bucket in range(first.size):
        here = first[bucket]
        while here >= 0:
            if tied[here]:
                labels[here] = _break_tie(here, labels, costs, image, width, weight)
            spent = costs[here]
            least = (spent + weight) * (1.0 - _NEAR)
            for down in range(-1, 2):
                for right in range(-1, 2):
                    there = here + down * width + right
                    known = costs[there]
                    if known < least:  # settled, or out of bounds, or nothing to be gained
                        continue
                    cost = spent + _step(here, there, down != 0 and right != 0, image, width, weight)
                    if cost > known * (1.0 + _NEAR):
                        continue
                    if cost >= known * (1.0 - _NEAR):
                        tied[there] = known < np.inf
                    if cost >= known or cost > max_cost:
                        continue
                    costs[there] = cost
                    labels[there] = labels[here]
                    new, old = int(cost * per_cost), int(min(known, max_cost) * per_cost)
                    if known < np.inf:
                        if new == old:
                            continue
                        if before[there] >= 0:
                            after[before[there]] = after[there]
                        else:
                            first[old] = after[there]
                        if after[there] >= 0:
                            before[after[there]] = before[there]
                    before[there] = -1
                    after[there] = first[new]
                    if first[new] >= 0:
                        before[first[new]] = there
                    first[new] = there
            here = after[here]


@kernel(inline="always")
def _step(here, there, diagonal, image, width, weight):
    """Cost of a step, its sum taken in the raster order of the nine pixels."""
    total = 0.0
    for row in range(-width, width + 1, width):
        for pixel in range(row - 1, row + 2):
            total += abs(np.float64(image[here + pixel]) - np.float64(image[there + pixel]))
    return np.sqrt(total * total + (2.0 if diagonal else 1.0) * weight * weight)


@kernel
def _break_tie(here, labels, costs, image, width, weight):
    """Label of a pixel that two steps reach at the same cost, as a heap of centrosome's would hand it out.

    The heap is sorted by the cost without its last bit, the label and the pixel; a pixel enters it again only if its cost
    becomes less. So of the steps whose costs agree but for that bit two can be the last: that which began first, and the first
    at the least cost. Of these the smaller label is handed out.
    """
    bits = costs.view(np.int64)
    cost = np.empty(1)
    opened, best = -1, -1
    for down in range(-1, 2):
        for right in range(-1, 2):
            there = here + down * width + right
            if not 0.0 <= costs[there] < costs[here]:
                continue
            cost[0] = costs[there] + _step(there, here, down != 0 and right != 0, image, width, weight)
            if cost.view(np.int64)[0] >> 1 != bits[here] >> 1:
                continue
            if opened < 0 or _comes_before(there, opened, labels, bits):
                opened = there
            if cost[0] == costs[here] and (best < 0 or _comes_before(there, best, labels, bits)):
                best = there
    return min(labels[opened], labels[best])


@kernel(inline="always")
def _comes_before(one, other, labels, bits):
    """Whether a pixel leaves the heap before another."""
    if bits[one] >> 1 != bits[other] >> 1:
        return bits[one] < bits[other]
    if labels[one] != labels[other]:
        return labels[one] < labels[other]
    return one < other
