"""Taking the light out of an image: counts by a flat-field."""

import numpy as np

from plateloom.compilation import kernel


def correct(image, flatfield, *, offset=0.0):
    """Scale an image to 0 … 1 and divide it by its flat-field.

    Parameters
    ----------
    image : ndarray of unsigned integer or float, shape (C, Y, X) or (Y, X)
        Integers [counts] are divided by the largest value of their type; floats are taken as they are.
    flatfield : ndarray of float32, shape (C, Y, X) or (Y, X)
        Mean 1, positive.
    offset : float or ndarray of float, shape (C, 1, 1)
        What the camera reads in the dark, in the unit of the image; taken off before the division. Left in, it makes
        the background of dark corners too bright.

    Returns
    -------
    ndarray of float32, shape of the image
        Within 0 … 1.

    Examples
    --------
    >>> image = np.array([[100, 200]], dtype=np.uint8)
    >>> correct(image, np.array([[0.8, 1.2]], dtype=np.float32))
    array([[0.49019608, 0.6535948 ]], dtype=float32)
    """
    image, flatfield = np.asarray(image), np.asarray(flatfield, dtype=np.float32)
    if image.shape[-2:] != flatfield.shape[-2:]:
        raise ValueError(f"Image of {image.shape[-2:]} px and flat-field of {flatfield.shape[-2:]} px do not match.")
    scale = np.iinfo(image.dtype).max if image.dtype.kind in "ui" else 1
    planes = image.reshape(-1, image.shape[-2] * image.shape[-1])
    flat = np.broadcast_to(flatfield, image.shape).reshape(planes.shape)
    offsets = np.broadcast_to(np.asarray(offset, dtype=np.float32).reshape(-1), len(planes))
    scaled = np.empty(planes.shape, dtype=np.float32)
    for channel in range(len(planes)):
        _scale(planes[channel], flat[channel], offsets[channel], np.float32(scale), scaled[channel])
    return scaled.reshape(image.shape)


@kernel
def _scale(plane, flatfield, offset, scale, scaled):
    """In float32 throughout, in one pass; NaN stays NaN."""
    for i in range(plane.size):
        value = (np.float32(plane[i]) - offset) / (flatfield[i] * scale)
        scaled[i] = min(max(value, np.float32(0)), np.float32(1))
