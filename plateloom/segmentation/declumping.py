"""Split a mask of touching nuclei into single ones, using only what lies within a known distance of each pixel.

Every kernel here is *bounded*: what it says about a pixel depends on a window of known width around it, and ties are
broken by raster order. A tile with a halo of that width therefore gives exactly what the whole image gives.

1. `box_sum` gives local means, `fill_holes` closes holes whose bounding box is small.
2. `squared_distance` is the distance to the background, up to a cap.
3. `climb` sends each pixel uphill on a landscape (distance, intensity or both) until a peak. A peak that rises too
   little above the pass to a higher one is no nucleus of its own: the climb goes on over the pass.
4. `finish_nuclei` trims each nucleus to a fraction of its own brightness, fills it, and drops what is no nucleus.
"""

import numpy as np

from plateloom.compilation import kernel

NOT_IN_MASK = -1


@kernel
def box_sum(values, half_px):
    """Sum over a square window around each pixel.

    Parameters
    ----------
    values : ndarray of int64, shape (Y, X)
        Whole numbers: their running sums are exact, wherever they were begun.
    half_px : int
        The window reaches this far [px] to each side, and ends at the edge of the array.

    Returns
    -------
    ndarray of int64, shape (Y, X)
    """
    height, width = values.shape
    rows = np.empty((height, width), np.int64)
    for y in range(height):
        total = np.int64(0)
        for x in range(min(half_px, width)):
            total += values[y, x]
        for x in range(width):
            if x + half_px < width:
                total += values[y, x + half_px]
            if x - half_px - 1 >= 0:
                total -= values[y, x - half_px - 1]
            rows[y, x] = total
    sums = np.empty((height, width), np.int64)
    column = np.zeros(width, np.int64)
    for y in range(min(half_px, height)):
        for x in range(width):
            column[x] += rows[y, x]
    for y in range(height):
        if y + half_px < height:
            for x in range(width):
                column[x] += rows[y + half_px, x]
        if y - half_px - 1 >= 0:
            for x in range(width):
                column[x] -= rows[y - half_px - 1, x]
        for x in range(width):
            sums[y, x] = column[x]
    return sums


@kernel
def fill_holes(mask, width_px):
    """Fill the holes of a mask that fit into a box.

    Parameters
    ----------
    mask : ndarray of bool, shape (Y, X)
        Changed in place.
    width_px : int
        Width of the box [px]. What touches the edge of the array is no hole.
    """
    height, width = mask.shape
    seen = mask.copy()
    stack = np.empty(height * width, np.int32)
    for start in range(height * width):
        if seen[start // width, start % width]:
            continue
        # Each pixel enters the stack once and is never overwritten, so that afterwards the stack is the hole.
        first, last = 0, 1
        stack[0] = start
        seen[start // width, start % width] = True
        top = left = 2**30
        bottom = right = -1
        while first < last:
            y, x = stack[first] // width, stack[first] % width
            first += 1
            top, bottom, left, right = min(top, y), max(bottom, y), min(left, x), max(right, x)
            if y > 0 and not seen[y - 1, x]:
                seen[y - 1, x] = True
                stack[last] = (y - 1) * width + x
                last += 1
            if y < height - 1 and not seen[y + 1, x]:
                seen[y + 1, x] = True
                stack[last] = (y + 1) * width + x
                last += 1
            if x > 0 and not seen[y, x - 1]:
                seen[y, x - 1] = True
                stack[last] = y * width + x - 1
                last += 1
            if x < width - 1 and not seen[y, x + 1]:
                seen[y, x + 1] = True
                stack[last] = y * width + x + 1
                last += 1
        touches_edge = top == 0 or left == 0 or bottom == height - 1 or right == width - 1
        if not touches_edge and bottom - top < width_px and right - left < width_px:
            for i in range(last):
                mask[stack[i] // width, stack[i] % width] = True


@kernel
def squared_distance(mask, cap_px):
    """Squared Euclidean distance of each pixel of a mask to the nearest pixel outside it, up to a cap.

    Parameters
    ----------
    mask : ndarray of bool, shape (Y, X)
    cap_px : int
        Distances above this [px] are reported as this. What lies beyond the edge of the array counts as inside.

    Returns
    -------
    ndarray of int32, shape (Y, X)
        Squared distance [px²]; 0 outside the mask.
    """
    height, width = mask.shape
    along_y = np.zeros((height, width), np.int32)
    run = np.full(width, cap_px, np.int32)
    for y in range(height):
        for x in range(width):
            run[x] = min(run[x] + 1, cap_px) if mask[y, x] else 0
            along_y[y, x] = run[x]
    run[:] = cap_px
    for y in range(height - 1, -1, -1):
        for x in range(width):
            run[x] = min(run[x] + 1, cap_px) if mask[y, x] else 0
            along_y[y, x] = min(along_y[y, x], run[x])
    distance = np.zeros((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                continue
            best = along_y[y, x] * along_y[y, x]
            step = 1
            while step * step < best:
                if x - step >= 0:
                    there = along_y[y, x - step]
                    best = min(best, step * step + there * there)
                if x + step < width:
                    there = along_y[y, x + step]
                    best = min(best, step * step + there * there)
                step += 1
            distance[y, x] = best
    return distance


@kernel
def _sift_up(heights, places, at):
    """Restore a heap (highest first, then raster order) after an append at `at`."""
    while at > 0:
        parent = (at - 1) // 2
        if heights[at] > heights[parent] or (heights[at] == heights[parent] and places[at] < places[parent]):
            heights[at], heights[parent] = heights[parent], heights[at]
            places[at], places[parent] = places[parent], places[at]
            at = parent
        else:
            return


@kernel
def _sift_down(heights, places, size):
    """Restore a heap (highest first, then raster order) after its root was replaced."""
    at = 0
    while True:
        best = at
        for child in (2 * at + 1, 2 * at + 2):
            if child < size and (
                heights[child] > heights[best] or (heights[child] == heights[best] and places[child] < places[best])
            ):
                best = child
        if best == at:
            return
        heights[at], heights[best] = heights[best], heights[at]
        places[at], places[best] = places[best], places[at]
        at = best


@kernel
def climb(landscape, mask, distance, prominence, weak_distance, window_px, reach_px):
    """Send each pixel of a mask uphill to the peak that it belongs to.

    Parameters
    ----------
    landscape : ndarray of int32, shape (Y, X)
        Heights, all positive within the mask.
    mask : ndarray of bool, shape (Y, X)
    distance : ndarray of int32, shape (Y, X)
        Squared distance to the background [px²], see `squared_distance`.
    prominence : float in [0, 1]
        A peak counts as one of its own if the pass to any higher peak is lower than ``(1 - prominence) * height``.
    weak_distance : int
        A peak with a squared distance below this [px²] is merged into whatever higher peak it touches.
    window_px : int
        How far around a peak a pass to a higher one is looked for [px], Chebyshev.
    reach_px : int
        A pixel belongs to a peak only if it and its way there stay this near the peak [px], Chebyshev.

    Returns
    -------
    ndarray of int32, shape (Y, X)
        Flat index of the peak of each pixel; -1 outside the mask and where no peak is near enough.
    """
    height, width = landscape.shape
    up = np.full(height * width, NOT_IN_MASK, np.int32)
    level = landscape.ravel()
    n_peaks = 0
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                continue
            here = y * width + x
            best_slope, best = 0.0, here
            plateau = here
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    ny, nx = y + dy, x + dx
                    if ny < 0 or nx < 0 or ny >= height or nx >= width or not mask[ny, nx]:
                        continue
                    rise = level[ny * width + nx] - level[here]
                    slope = rise * (0.7071067811865476 if dy != 0 and dx != 0 else 1.0)
                    if slope > best_slope:
                        best_slope, best = slope, ny * width + nx
                    elif rise == 0 and ny * width + nx < plateau:
                        plateau = ny * width + nx
            up[here] = best if best_slope > 0 else plateau
            n_peaks += up[here] == here

    # A peak that is not prominent is linked to the first higher pixel that a flood from it reaches.
    stamp = np.zeros(height * width, np.int32)
    box = (2 * window_px + 1) * (2 * window_px + 1)
    heights, places = np.empty(box, np.int32), np.empty(box, np.int32)
    flood = 0
    flat_distance = distance.ravel()
    for peak in range(height * width):
        if up[peak] != peak:
            continue
        flood += 1
        py, px = peak // width, peak % width
        lowest = (1.0 - prominence) * level[peak]
        if flat_distance[peak] < weak_distance:
            lowest = 0.0
        heights[0], places[0], size = level[peak], peak, 1
        stamp[peak] = flood
        while size > 0:
            high, here = heights[0], places[0]
            if high > level[peak] or (high == level[peak] and here < peak):
                up[peak] = here
                break
            size -= 1
            heights[0], places[0] = heights[size], places[size]
            _sift_down(heights, places, size)
            y, x = here // width, here % width
            for ny in range(max(y - 1, py - window_px, 0), min(y + 2, py + window_px + 1, height)):
                for nx in range(max(x - 1, px - window_px, 0), min(x + 2, px + window_px + 1, width)):
                    there = ny * width + nx
                    if mask[ny, nx] and stamp[there] != flood and level[there] >= lowest:
                        stamp[there] = flood
                        heights[size], places[size] = level[there], there
                        size += 1
                        _sift_up(heights, places, size - 1)

    # Follow the links; what is known of the pixel above holds for the one below if that is near the peak too.
    peak_of = np.full(height * width, NOT_IN_MASK, np.int32)
    done = np.zeros(height * width, np.bool_)
    way = np.empty(height * width, np.int32)
    for start in range(height * width):
        if up[start] == NOT_IN_MASK or done[start]:
            continue
        here, length = start, 0
        while not done[here] and up[here] != here:
            way[length] = here
            length += 1
            here = up[here]
        if not done[here]:
            peak_of[here] = here
            done[here] = True
        peak = peak_of[here]
        for i in range(length - 1, -1, -1):
            here = way[i]
            done[here] = True
            if peak != NOT_IN_MASK:
                dy, dx = here // width - peak // width, here % width - peak % width
                if max(abs(dy), abs(dx)) > reach_px:
                    peak = NOT_IN_MASK
            peak_of[here] = peak
    return peak_of.reshape(height, width)


@kernel
def _flood_outside(box, outside, stack, h, w):
    """Mark the pixels of a framed box that the frame reaches without crossing a kept (3) pixel."""
    stack[0], n = 0, 1
    outside[0] = True
    while n > 0:
        n -= 1
        at = stack[n]
        y, x = at // w, at % w
        for side in range(4):
            if side == 0:
                there = at - w if y > 0 else at
            elif side == 1:
                there = at + w if y < h - 1 else at
            elif side == 2:
                there = at - 1 if x > 0 else at
            else:
                there = at + 1 if x < w - 1 else at
            if box[there] != 3 and not outside[there]:
                outside[there] = True
                stack[n] = there
                n += 1


@kernel
def finish_nuclei(peak_of, image, background, trim, min_contrast, ring_px, min_area, max_area):
    """Trim each nucleus to a fraction of its own brightness, make it whole, and drop what is no nucleus.

    Parameters
    ----------
    peak_of : ndarray of int32, shape (Y, X)
        What `climb` returned.
    image : ndarray of float32, shape (Y, X)
        Smoothed nuclei channel; NaN counts in no surroundings.
    background : float
        Intensity of the background.
    trim : float in [0, 1)
        A pixel stays if it is above the background by this fraction of the nucleus' brightness above the background.
    min_contrast : float
        A nucleus must be brighter by this than the darkest tenth of what surrounds it.
    ring_px : int
        How far beyond a nucleus' bounding box its surroundings reach [px].
    min_area, max_area : int
        Nuclei smaller or larger than this [px] are dropped.

    Returns
    -------
    ndarray of int32, shape (Y, X)
        1 + flat index of the nucleus' first pixel in raster order; 0 is background.
    """
    height, width = peak_of.shape
    peaks, value = peak_of.ravel(), image.ravel()
    number = np.zeros(height * width, np.int32)
    count, members = 0, 0
    for i in range(height * width):
        if peaks[i] != NOT_IN_MASK:
            members += 1
            if number[peaks[i]] == 0:
                count += 1
                number[peaks[i]] = count
    starts = np.zeros(count + 2, np.int64)
    for i in range(height * width):
        if peaks[i] != NOT_IN_MASK:
            starts[number[peaks[i]] + 1] += 1
    for k in range(1, count + 2):
        starts[k] += starts[k - 1]
    pixels = np.empty(members, np.int32)
    fill = starts[:-1].copy()
    for i in range(height * width):
        if peaks[i] != NOT_IN_MASK:
            k = number[peaks[i]]
            pixels[fill[k]] = i
            fill[k] += 1

    ids = np.zeros(height * width, np.int32)
    for k in range(1, count + 1):
        own = pixels[starts[k] : starts[k + 1]]
        if len(own) < min_area:
            continue
        # Brightness: the mean of the pixels above the mean, which blurred edges and dark nucleoli do not lower.
        mean = 0.0
        for i in own:
            mean += value[i]
        mean /= len(own)
        brightness, n_bright = 0.0, 0
        for i in own:
            if value[i] >= mean:
                brightness += value[i]
                n_bright += 1
        brightness = brightness / n_bright if n_bright > 0 else mean
        limit = background + trim * (brightness - background)

        top, bottom, left, right = height, 0, width, 0
        for i in own:
            y, x = i // width, i % width
            top, bottom, left, right = min(top, y), max(bottom, y), min(left, x), max(right, x)
        ring = np.empty((bottom - top + 1 + 2 * ring_px) * (right - left + 1 + 2 * ring_px), np.float32)
        n = 0
        for y in range(max(top - ring_px, 0), min(bottom + ring_px + 1, height)):
            for x in range(max(left - ring_px, 0), min(right + ring_px + 1, width)):
                if peaks[y * width + x] != peaks[own[0]] and not np.isnan(value[y * width + x]):
                    ring[n] = value[y * width + x]
                    n += 1
        if n > 0 and brightness - np.partition(ring[:n], n // 10)[n // 10] < min_contrast:
            continue

        # The nucleus' box in a frame of one pixel: 0 other, 1 dim, 2 bright, 3 kept.
        h, w = bottom - top + 3, right - left + 3
        box = np.zeros(h * w, np.uint8)
        seed, seed_value = -1, np.float32(-np.inf)
        for i in own:
            at = (i // width - top + 1) * w + i % width - left + 1
            bright = value[i] >= limit
            box[at] = 2 if bright else 1
            if i == peaks[i] and bright:
                seed, seed_value = at, np.float32(np.inf)
            elif bright and value[i] > seed_value:
                seed, seed_value = at, value[i]
        if seed < 0:
            continue
        stack = np.empty(h * w, np.int32)
        stack[0], n = seed, 1
        box[seed] = 3
        while n > 0:
            n -= 1
            at = stack[n]
            for dy in (-w, 0, w):
                for dx in (-1, 0, 1):
                    if box[at + dy + dx] == 2:
                        box[at + dy + dx] = 3
                        stack[n] = at + dy + dx
                        n += 1
        outside = np.zeros(h * w, np.bool_)
        _flood_outside(box, outside, stack, h, w)
        area, first = 0, -1
        for i in own:
            if not outside[(i // width - top + 1) * w + i % width - left + 1]:
                area += 1
                if first < 0:
                    first = i
        if area < min_area or area > max_area:
            continue
        for i in own:
            if not outside[(i // width - top + 1) * w + i % width - left + 1]:
                ids[i] = first + 1
    return ids.reshape(height, width)
