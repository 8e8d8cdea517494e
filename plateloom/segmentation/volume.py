"""Nuclei and cells in three dimensions: thresholds, distance from the surface, watershed; no training, no GPU.

For plates that keep their z planes (`conversion.z: keep`). Thresholds are those of `watershed`, from the histograms of all
planes of a field. Lengths are physical, so planes may lie farther apart than pixels. A field is segmented in one piece (see
`plateloom.segmentation.memory_of_volume`).
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from plateloom.segmentation import subtract_nuclei
from plateloom.segmentation.watershed import Params as PlaneParams
from plateloom.segmentation.watershed import ThresholdParams, Watershed

VOLUMES = True
_DETAIL = 0.12  # of a nucleus diameter: what is finer parts no nuclei


class Params(ThresholdParams):
    """Parameters of the segmentation of volumes; for most assays the channels and the diameter are all there is to set."""

    declump: Literal["both", "shape", "intensity"] = Field(
        "shape", description="What separates touching nuclei: necks (shape), dark places (intensity), or both."
    )
    prominence: float = Field(
        0.05,
        ge=0,
        le=1,
        description="How far a neck or dark place must fall below the lesser of two peaks to part them, as a fraction of that "
        "peak (dimensionless); higher splits less.",
    )


def segment(image, channels, params, *, pixel_size_um, z_step_um):
    """Find the nuclei and cells of a volume.

    Parameters
    ----------
    image : ndarray of float32, shape (C, Z, Y, X)
        Illumination-corrected intensities in [0, 1].
    channels : sequence of str, length C
    params : Params
    pixel_size_um : float
        Width of a pixel [µm/px].
    z_step_um : float
        Distance of planes [µm].

    Returns
    -------
    dict of str to ndarray of uint32, shape (Z, Y, X)
        As of `plateloom.segmentation.segment_image`: nuclei and cells of one value, 1 … N in the order of the nuclei's first
        voxels, plane by plane.

    Raises
    ------
    ValueError
        If a channel is missing, or a size is not above 0.
    """
    if z_step_um is None or not z_step_um > 0:
        raise ValueError(f"z_step_um is {z_step_um!r}, expected a distance above 0.")
    shared = Params.model_fields.keys() & PlaneParams.model_fields.keys()
    in_planes = PlaneParams(**{name: getattr(params, name) for name in shared})
    planes = Watershed(in_planes, channels, pixel_size_um=pixel_size_um, shape=image.shape[2:])
    whole = tuple(slice(0, size) for size in image.shape[2:])
    known = planes.combine([planes.measure(image[:, z], (0, 0), whole) for z in range(image.shape[1])])
    spacing = (z_step_um, pixel_size_um, pixel_size_um)
    sigma_um = planes.smoothing_px * pixel_size_um
    smooth = _smooth(image[planes.nuclei_index], sigma_um, spacing)
    nuclei = _find_nuclei(smooth, known["nuclei"], params, planes, spacing)
    reach_um = planes.distance_px * pixel_size_um
    if not reach_um or not nuclei.any():
        return {"Nuclei": nuclei, "Cells": nuclei.copy(), "Cytoplasm": np.zeros_like(nuclei)}
    bright = None
    if planes.cells_index is not None:
        bright = _smooth(image[planes.cells_index], sigma_um, spacing) > np.float32(known["cells"]["threshold"])
    cells = _grow(nuclei, bright, reach_um, spacing)
    return {"Nuclei": nuclei, "Cells": cells, "Cytoplasm": subtract_nuclei(cells, nuclei)}


def _smooth(volume, sigma_um, spacing):
    """Gaussian of a physical width; along axes that are sampled too coarsely for it, nothing."""
    from scipy.ndimage import gaussian_filter

    sigma = [sigma_um / step if sigma_um / step >= 0.3 else 0.0 for step in spacing]
    return gaussian_filter(volume, sigma, truncate=3.0)


def _find_nuclei(smooth, known, params, planes, spacing):
    """Labels of the nuclei, in the order of their first voxels."""
    from scipy.ndimage import distance_transform_edt, uniform_filter
    from skimage.segmentation import watershed

    from plateloom.segmentation.declumping import fill_holes

    mask = smooth > np.float32(known["threshold"])
    if params.local_threshold and mask.any():
        above = smooth - np.float32(known["background"])
        window = [max(1, 2 * round(0.8 * params.nucleus_diameter_um / step) + 1) for step in spacing]
        mask &= above > params.local_threshold * uniform_filter(above, window, mode="nearest")
        del above
    for plane in mask:
        fill_holes(plane, planes.hole_px)
    _fill_cavities(mask, math.pi / 6 * params.nucleus_diameter_um**3 / math.prod(spacing))
    if not mask.any():
        return np.zeros(smooth.shape, np.uint32)
    # Beyond the volume nothing is known: its faces are no surface of a nucleus.
    padded = np.pad(mask, 1, mode="edge")
    distance = distance_transform_edt(padded, sampling=spacing).astype(np.float32)[1:-1, 1:-1, 1:-1]
    del padded
    np.minimum(distance, planes.cap_px * spacing[2], out=distance)
    detail_um = _DETAIL * params.nucleus_diameter_um
    landscape = np.ones_like(smooth) if params.declump == "intensity" else _smooth(distance, detail_um, spacing)
    if params.declump != "shape":
        landscape *= np.maximum(_smooth(smooth, detail_um, spacing) - np.float32(known["background"]), 0)
    landscape[~mask] = 0
    basins = watershed(-landscape, mask=mask, connectivity=1)
    merged = merge_basins(basins, landscape, params.prominence)
    del basins, landscape, distance
    _trim(merged, smooth, known["background"], params.outline)
    return _keep_nuclei(merged, params, spacing)


def _fill_cavities(mask, largest):
    """Fill what is enclosed in all directions and smaller than a nucleus [voxels]."""
    from scipy.ndimage import label

    outside, _ = label(~mask)
    sizes = np.bincount(outside.ravel())
    small = sizes < largest
    for axis in range(3):
        for end in (0, -1):
            small[np.unique(outside.take(end, axis=axis))] = False
    mask |= small[outside]


def merge_basins(basins, landscape, prominence):
    """Join basins that no valley parts.

    Parameters
    ----------
    basins : ndarray of int, shape (Z, Y, X)
        1 … N; 0 is background.
    landscape : ndarray of float32, shape (Z, Y, X)
        Not negative.
    prominence : float
        Two basins are joined if the highest pass between them lies less than this fraction of the lower peak below that.

    Returns
    -------
    ndarray of int, shape (Z, Y, X)
        One of the basins' labels each.
    """
    count = int(basins.max())
    peaks = np.zeros(count + 1, landscape.dtype)
    np.maximum.at(peaks, basins.ravel(), landscape.ravel())
    pairs, heights = [], []
    for axis in range(basins.ndim):
        ends = [
            np.moveaxis(image, axis, 0)[part]
            for part in (slice(None, -1), slice(1, None))
            for image in (basins, landscape)
        ]
        touching = (ends[0] != ends[2]) & (ends[0] > 0) & (ends[2] > 0)
        pairs.append(np.sort([ends[0][touching], ends[2][touching]], axis=0))
        heights.append(np.minimum(ends[1][touching], ends[3][touching]))
    pairs, heights = np.concatenate(pairs, axis=1), np.concatenate(heights)
    order = np.lexsort((pairs[1], pairs[0], -heights))
    root = np.arange(count + 1)

    def find(one):
        while root[one] != one:
            root[one] = root[root[one]]
            one = root[one]
        return one

    # From the highest pass down: what is joined has one peak, the higher one.
    _, first = np.unique(pairs[0][order] * np.int64(count + 1) + pairs[1][order], return_index=True)
    for k in order[np.sort(first)]:
        one, other = find(pairs[0, k]), find(pairs[1, k])
        if one != other and heights[k] > (1 - prominence) * min(peaks[one], peaks[other]):
            lower, higher = sorted((one, other), key=lambda end: (peaks[end], -end))
            root[lower] = higher
    return np.array([find(one) for one in range(count + 1)], basins.dtype)[basins]


def _trim(labels, smooth, background, outline):
    """Cut each nucleus where its brightness falls to a fraction of what its brighter half has on average; one piece stays."""
    from scipy.ndimage import binary_fill_holes, find_objects, label

    for value, box in enumerate(find_objects(labels), 1):
        if box is None:
            continue
        own, above = labels[box] == value, smooth[box] - np.float32(background)
        brightness = above[own]
        level = outline * brightness[brightness >= np.median(brightness)].mean()
        pieces, count = label(own & (above >= level))
        kept = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1 if count else np.zeros_like(own)
        labels[box][own & ~binary_fill_holes(kept)] = 0


def _keep_nuclei(labels, params, spacing):
    """Drop what is too small, too large or cut, and number the rest by their first voxels."""
    values, first, place, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    low, high = (math.pi / 6 * diameter**3 / math.prod(spacing) for diameter in params.diameters_um)
    kept = (values > 0) & (sizes >= low) & (sizes <= high)
    if params.border == "drop":
        faces = [labels.take(end, axis=axis).ravel() for axis in range(3) for end in (0, -1)]
        kept &= ~np.isin(values, np.unique(np.concatenate(faces)))
    numbers = np.zeros(len(values), np.uint32)
    numbers[np.flatnonzero(kept)[np.argsort(first[kept])]] = np.arange(1, kept.sum() + 1)
    return numbers[place.reshape(labels.shape)]


def _grow(nuclei, bright, reach_um, spacing):
    """Cells: what lies within reach of a nucleus, of the nearest along a way through the cells; no farther than is bright."""
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import watershed

    distance = distance_transform_edt(nuclei == 0, sampling=spacing).astype(np.float32)
    allowed = distance <= reach_um
    if bright is not None:
        allowed &= bright | (nuclei > 0)
    return watershed(distance, nuclei.astype(np.int32), mask=allowed).astype(np.uint32)
