"""Cells cut out of a field, each in a window of the same size around its center."""

import numpy as np


def crop_cells(image, centers, *, size_px, out_px, labels=None, label_values=None, keep_background=False):
    """Cut a square window around each cell and resample it.

    Parameters
    ----------
    image : array of float, shape (C, Y, X)
        Intensities, usually in [0, 1].
    centers : array of float, shape (N, 2)
        Row and column of each cell [px]; whole numbers are pixel centers.
    size_px : int
        Side of the window in the image [px].
    out_px : int
        Side of the crop that comes back [px].
    labels : array of int, shape (Y, X) or (Z, Y, X), optional
        Label image; 0 is background. With it, pixels that do not belong to the cell become 0; of a label volume, those that
        belong to it in no plane.
    label_values : array of int, shape (N,), optional
        The label of each cell; needed with `labels`.
    keep_background : bool
        With `labels`: blank other cells only, not the background.

    Returns
    -------
    ndarray of float32, shape (N, C, out_px, out_px)
        What lies outside the image is 0.

    Notes
    -----
    The window snaps to whole pixels, so nothing is interpolated twice and a cell is cropped alike wherever its tile
    began. Shrinking averages over the area of each new pixel (no aliasing), enlarging interpolates linearly.

    Examples
    --------
    >>> crop_cells(np.arange(16.0).reshape(1, 4, 4), [[1.5, 1.5]], size_px=4, out_px=2)
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]], dtype=float32)
    """
    image = np.asarray(image)
    centers = np.asarray(centers, dtype=float).reshape(-1, 2)
    if image.ndim != 3:
        raise ValueError(f"Found an image of shape {image.shape}. Expected (C, Y, X).")
    if size_px < 1 or out_px < 1:
        raise ValueError(f"size_px is {size_px} and out_px is {out_px}. Both must be at least 1.")
    if not np.isfinite(centers).all():
        raise ValueError("Some centers are not finite. Leave those cells out.")
    if labels is not None:
        if label_values is None or len(label_values) != len(centers):
            raise ValueError("With `labels`, one label value per center is needed.")
        if np.ndim(labels) not in (2, 3) or np.shape(labels)[-2:] != image.shape[1:]:
            raise ValueError(f"The label image has shape {np.shape(labels)}, the image {image.shape[1:]}.")
    rows = resampling_matrix(size_px, out_px)
    corners = np.floor(centers - (size_px - 1) / 2 + 0.5).astype(int)
    crops = np.zeros((len(centers), len(image), out_px, out_px), dtype=np.float32)
    height, width = image.shape[1:]
    for n, (top, left) in enumerate(corners):
        y0, y1 = max(top, 0), min(top + size_px, height)
        x0, x1 = max(left, 0), min(left + size_px, width)
        if y0 >= y1 or x0 >= x1:
            continue
        window = np.zeros((len(image), size_px, size_px), dtype=np.float32)
        inside = image[:, y0:y1, x0:x1].astype(np.float32)
        if labels is not None:
            here = np.asarray(labels[..., y0:y1, x0:x1]).reshape(-1, y1 - y0, x1 - x0)
            own = (here == label_values[n]).any(axis=0)
            inside = np.where(own | (here == 0).all(axis=0) if keep_background else own, inside, 0)
        window[:, y0 - top : y1 - top, x0 - left : x1 - left] = inside
        crops[n] = rows @ window @ rows.T if rows is not None else window
    return crops


def resampling_matrix(size_px, out_px):
    """Build the matrix that resamples one axis; None where nothing changes.

    Parameters
    ----------
    size_px, out_px : int
        Pixels before and after.

    Returns
    -------
    ndarray of float32, shape (out_px, size_px), or None
        Rows sum to 1.
    """
    if size_px == out_px:
        return None
    step = size_px / out_px
    edges = np.arange(out_px + 1) * step
    if step > 1:  # the share of each old pixel in each new one
        old = np.arange(size_px)
        weights = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
        weights = np.clip(weights, 0, None)
    else:
        place = np.clip((edges[:-1] + edges[1:]) / 2 - 0.5, 0, size_px - 1)
        weights = np.clip(1 - np.abs(place[:, None] - np.arange(size_px)), 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def intensity_range(crops, percentiles=(0.1, 99.9)):
    """Find the range of each channel that `normalize_crops` shall stretch, from a sample of crops.

    Parameters
    ----------
    crops : array of float, shape (N, C, H, W)
    percentiles : pair of float in [0, 100]

    Returns
    -------
    low, high : ndarray of float64, shape (C,)
        Over the pixels that are not exactly 0 (padding and masks are); 0 and 0 where there is none.
    """
    crops = np.asarray(crops)
    ranges = []
    for channel in range(crops.shape[1]):
        values = crops[:, channel]
        values = values[(values != 0) & np.isfinite(values)]
        ranges.append(np.percentile(values, percentiles) if values.size else np.zeros(2))
    low, high = np.asarray(ranges, dtype=float).reshape(-1, 2).T
    return low, high


def normalize_crops(crops, low, high):
    """Stretch each channel from [low, high] to [0, 1].

    Parameters
    ----------
    crops : array of float, shape (N, C, H, W)
    low, high : array of float, shape (C,)
        The same for all crops that shall be compared.

    Returns
    -------
    ndarray of float32, shape (N, C, H, W)
        Values beyond the range are clipped; a channel without range becomes 0.
    """
    crops = np.asarray(crops, dtype=np.float32)
    low, high = (np.asarray(value, dtype=np.float32).reshape(1, -1, 1, 1) for value in (low, high))
    width = np.where(high > low, high - low, np.float32(np.inf))
    return np.clip((crops - low) / width, 0, 1)
