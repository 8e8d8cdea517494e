"""Flat-field as the microscope's own software has it: a polynomial, or an image of even light. No field is looked at.

What it is made from came with the images and is kept beside the plate since its conversion.

- Harmony (Operetta, Opera Phenix) writes polynomials into the index of its images. Of images that it has corrected
  itself it leaves them out, so a polynomial means that the images are raw. The one of the background is what Harmony
  calls the basic correction; the one of the foreground belongs to a model in which cells and background are lit
  differently, of which a single flat-field is only half.
- The CellVoyager (CV7000, CV8000) keeps a shading image of each filter, and a dark image of each camera. Its metadata do
  not tell whether images were corrected; they are taken as raw, as the instrument writes them. The median of the dark
  image is taken off the images, not off the shading image, which is taken as one that has been corrected for it.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.illumination.plausibility import doubt_flatfield

_DEAD = 0.001  # share of the pixels of a shading image that may be dark or hot and are cut
_ROUNDING = 0.01  # within which an image and a flat-field have the same proportions


class Params(BaseModel):
    """Parameters of the choice."""

    model_config = ConfigDict(extra="forbid")

    profile: Literal["background", "foreground"] = Field(
        "background", description="Which of Harmony's two polynomials counts, where there are both."
    )
    max_range: float = Field(
        20.0,
        gt=1,
        description="Brightest over darkest place; a flat-field beyond is implausible, and 1 is taken instead.",
    )
    camera_offset: float | None = Field(
        None, ge=0, description="What the camera reads in the dark [counts]; default: the vendor's dark image, or 0."
    )


def evaluate(said, shape, params):
    """Evaluate the vendor's flat-field of a channel.

    Parameters
    ----------
    said : dict or None
        One of `profiles`: the dict of `plateloom.readers.harmony.read_flatfield`; `image`: ndarray of unsigned integer,
        shape (H, W) [counts]; `reason`: why there is neither. None where the source has nothing.
    shape : tuple of int (Y, X)
        Of the flat-field [px]. The image may be larger or smaller, as by binning, but of the same proportions.
    params : Params

    Returns
    -------
    flatfield : ndarray of float32, shape (Y, X)
        Positive, mean 1.
    reason : str
        Why it is 1 everywhere; empty where the vendor says so.

    Examples
    --------
    >>> evaluate({"image": np.array([[50, 150]], np.uint16)}, (1, 2), Params())[0]
    array([[0.5, 1.5]], dtype=float32)
    >>> evaluate(None, (1, 2), Params())[1]
    'the source has no flat-field of this channel'
    """
    flat = np.ones(shape, dtype=np.float32)
    said = said or {}
    if "image" in said:
        found, reason = _resample(said["image"], shape)
    elif "profiles" in said:
        found, reason = _evaluate_profile(said["profiles"], shape, params)
    else:
        found, reason = flat, said.get("reason", "the source has no flat-field of this channel")
    reason = reason or doubt_flatfield(found, max_range=params.max_range)
    return (flat, reason) if reason else ((found / found.mean()).astype(np.float32), "")


def offset_of(said, params):
    """What to take off the images of a channel before the division [counts]."""
    if params.camera_offset is not None:
        return params.camera_offset
    return (said or {}).get("dark", 0.0)


def _evaluate_profile(profiles, shape, params):
    """One of Harmony's polynomials at the centers of the pixels."""
    flat = np.ones(shape, dtype=np.float32)
    profile = profiles.get("foreground", profiles) if params.profile == "foreground" else profiles
    if "coefficients" not in profile:
        even = str(profile.get("character", "")).lower() == "flat"
        return flat, "" if even else "the vendor's flat-field is no polynomial"
    width, height = profile.get("dims", shape[::-1])
    if not _same_proportions((height, width), shape):
        return flat, f"the vendor's flat-field is for {height} × {width} px, the images are {shape[0]} × {shape[1]}"
    origin, scale = profile.get("origin", [(width - 1) / 2, (height - 1) / 2]), profile.get("scale", [1, 1])
    x, y = (
        ((np.arange(size) + 0.5) * whole / size - 0.5 - middle) * step
        for size, whole, middle, step in zip(shape[::-1], (width, height), origin, scale, strict=True)
    )
    found = np.zeros(shape)
    for order, row in enumerate(profile["coefficients"]):
        for k, value in enumerate(row):
            found += value * (y**k)[:, None] * x ** (order - k)
    return found, ""


def _resample(image, shape):
    """A shading image at the size of the fields, with its few dead and hot pixels cut."""
    if not _same_proportions(image.shape, shape):
        return np.ones(shape), f"the vendor's flat-field is {image.shape} px, the images are {tuple(shape)}"
    image = np.clip(image, *np.quantile(image, [_DEAD, 1 - _DEAD], method="nearest")).astype(np.float64)
    steps = [max(1, round(whole / size)) for whole, size in zip(image.shape, shape, strict=True)]
    if all(whole == step * size for whole, step, size in zip(image.shape, steps, shape, strict=True)):
        return image.reshape(shape[0], steps[0], shape[1], steps[1]).mean((1, 3)), ""
    from scipy.ndimage import map_coordinates  # not with the settings

    places = [(np.arange(size) + 0.5) * whole / size - 0.5 for whole, size in zip(image.shape, shape, strict=True)]
    return map_coordinates(image, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest"), ""


def _same_proportions(one, other):
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) < _ROUNDING
