"""What the network of the method `unet` learns to predict of every pixel, and how nuclei are read from it."""

import numpy as np
from scipy import ndimage

from plateloom.segmentation.declumping import climb, fill_holes, squared_distance

BOUNDARY_PX = 5
MEETING = 0.5
"""Where two nuclei surely meet, the landscape falls by this fraction."""

_HEIGHT = 10_000  # steps of the landscape per nucleus


def make_targets(labels):
    """Turn labels into the maps that a perfect network would predict.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X)
        Nuclei; 0 is background.

    Returns
    -------
    ndarray of float32, shape (3, Y, X)
        ``foreground``: 1 in nuclei. ``distance``: distance to the nucleus' edge as a fraction of the largest in the
        nucleus, 0 outside; a nucleus does not end at the edge of the image. ``boundary``: 1 where two nuclei lie
        within a window of 5 × 5 pixels.

    Examples
    --------
    >>> make_targets(np.array([[0, 4, 4, 4, 0]]))[1].tolist()
    [[0.0, 0.5, 1.0, 0.5, 0.0]]
    """
    labels = np.asarray(labels)
    _, numbered = np.unique(labels, return_inverse=True)
    numbered = numbered.reshape(labels.shape)
    if labels.size and labels.min() > 0:
        numbered = numbered + 1
    inside = numbered > 0
    alone = inside.copy()
    for axis in (0, 1):
        a, b = (np.moveaxis(numbered, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        touching = (a != b) & (a > 0) & (b > 0)
        for part in (slice(1, None), slice(None, -1)):
            np.moveaxis(alone, axis, 0)[part][touching] = False
    # Pixels beside another nucleus are an edge, half a pixel inside it; the others count from beyond their edge.
    distance = np.where(inside, 0.5, 0.0)
    if not alone.all():
        distance[alone] = ndimage.distance_transform_edt(alone)[alone]
    else:
        distance[:] = 1.0
    largest = np.zeros(numbered.max(initial=0) + 1)
    np.maximum.at(largest, numbered.ravel(), distance.ravel())
    largest[largest == 0] = 1.0
    distance = distance / largest[numbered]
    highest = ndimage.maximum_filter(numbered, BOUNDARY_PX, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(inside, numbered, len(largest)), BOUNDARY_PX, mode="nearest")
    return np.stack([inside, distance, (highest > 0) & (lowest < highest)]).astype(np.float32)


def find_nuclei(maps, *, log_odds, prominence, diameter_px, hole_px, cap_px, flood_px, reach_px, covered=None):
    """Part the foreground that a network sees into nuclei.

    Parameters
    ----------
    maps : ndarray of float32, shape (3, Y, X)
        `foreground` and `boundary` as log odds, `distance` as `make_targets` gives it.
    log_odds : float
        Pixels with more are foreground.
    prominence : float in [0, 1]
        A peak of the depth is a nucleus of its own if it rises by this fraction of its height above the pass to any
        higher one.
    diameter_px : float
        Diameter of a typical nucleus [px].
    hole_px : int
        Holes narrower than this are filled [px]; 0: none.
    cap_px : int
        Depth in the foreground is told apart up to this [px].
    flood_px, reach_px : int
        How far passes are looked for, and how far a pixel may be from its peak [px], see `climb`.
    covered : ndarray of bool, shape (Y, X), optional
        Where there is an image; default: everywhere.

    Returns
    -------
    ndarray of int32, shape (Y, X)
        Flat index of the peak of each pixel; -1 in the background and where no peak is near enough.
    """
    foreground, distance, boundary = maps
    mask = foreground > np.float32(log_odds)
    if hole_px:
        fill_holes(mask, hole_px)
    solid = mask
    if covered is not None:
        mask &= covered
        solid = mask | ~covered
    # The odds as a straight line: unlike an exponential it is rounded alike by every processor.
    meeting = np.clip(0.5 + boundary.astype(np.float64) / 4, 0.0, 1.0)
    height = np.clip(distance.astype(np.float64), 0.0, 2.0) * (1 - MEETING * meeting)
    landscape = np.rint(height * _HEIGHT).astype(np.int32) + 1
    # A peak nearer to the background than this is the ripple of an outline.
    weak = int((0.3 * diameter_px / 2) ** 2)
    return climb(landscape, mask, squared_distance(solid, cap_px), prominence, weak, flood_px, reach_px)
