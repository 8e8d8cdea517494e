"""Flat-field as what all fields of a plate share: the typical brightness at each place, made smooth.

A plain median over fields fails where cells cover about half of them: it jumps between background and cells. Here the
logs of the fields are aligned instead: that smooth surface is looked for after whose removal the brightness has the
same distribution everywhere. Like a median, it does not mind the few fields that are unlike the others.

The plain statistics are there too (`statistic`), for plates without cells and for comparisons: the mean or median of all
fields, smoothed, is what CellProfiler calls an illumination function.
"""

import warnings
from typing import Literal

import numpy as np
from numpy.polynomial import legendre
from pydantic import BaseModel, ConfigDict, Field

from plateloom.illumination.plausibility import doubt_flatfield
from plateloom.illumination.thumbnails import is_even, shrink_plane, sort_fields

_BANDWIDTHS = (
    0.4,
    0.2,
    0.1,
    0.06,
    0.03,
)  # of the distribution, in log units: from coarse to fine, against local optima
_STEPS = 8
_PATCHES = 200  # independent pieces in a field, as far as its own level is concerned
_LEVEL_SPREAD = 0.1  # prior of a field's own level, in log units
_OFFSET_SHARE, _OFFSET_SPREAD = 0.7, 0.2  # prior of the camera's offset, as a share of the darkest block


class Params(BaseModel):
    """Parameters of the estimate."""

    model_config = ConfigDict(extra="forbid")

    thumbnail: int = Field(64, ge=8, le=256, description="Width and height of a field's thumbnail [blocks].")
    degree: int = Field(4, ge=1, le=6, description="Degree of the polynomial in y and x that the log flat-field is.")
    statistic: Literal["alignment", "median", "mean"] = Field(
        "alignment",
        description="What fields have in common: the shading after whose removal brightness has the same distribution "
        "everywhere; or the plain `median` or `mean` at each place, made smooth.",
    )
    min_fields: int = Field(4, ge=2, description="From fewer fields no flat-field is estimated: it is 1.")
    max_range: float = Field(
        4.0,
        gt=1,
        description="Brightest over darkest place; a flat-field beyond is implausible, and 1 is taken instead.",
    )
    max_error: float = Field(
        0.05,
        gt=0,
        description="Standard error, as two halves of the fields tell it, of a flat-field that is taken; else it is 1.",
    )
    camera_offset: float | None = Field(
        None, ge=0, description="What the camera reads in the dark [counts]; default: estimated."
    )


def shrink(plane, params):
    """Shrink one raw plane to block means.

    Parameters
    ----------
    plane : ndarray of integer or float, shape (Y, X)
        Raw [counts]; NaN where a pixel is not the field's own.
    params : Params

    Returns
    -------
    ndarray of float32, shape (G, G)
        Means of G × G blocks [counts], G being ``params.thumbnail`` (see `shrink_plane`).
    """
    return shrink_plane(plane, params.thumbnail)


def estimate(thumbnails, shape, params):
    """Estimate the flat-field of a channel from thumbnails of a plate's fields.

    Parameters
    ----------
    thumbnails : ndarray of float32, shape (K, G, G)
        As `shrink` made them [counts]. Their order has no influence, to the last bit. What is not finite is not known,
        and has no influence either.
    shape : tuple of int (Y, X)
        Of the flat-field [px].
    params : Params

    Returns
    -------
    flatfield : ndarray of float32, shape (Y, X)
        Smooth, positive, mean 1.
    reason : str
        Why the flat-field is 1 everywhere although a shading was looked for; else empty.

    Notes
    -----
    The model is ``counts = offset + flatfield * level of the field * content``, the content having one unknown
    distribution on the whole plate. Polynomial and levels are its maximum-likelihood location parameters in the log,
    the distribution being re-estimated in every step, much as when its entropy is minimized. The offset is the one for
    which background and cells show the same shading; a plate says little about it, so whoever knows his camera should
    set ``camera_offset``: the error halves.

    From few fields the estimate is noisy; the log flat-field is multiplied by ``1 - noise / total`` variance, the noise
    being seen where two halves of the fields disagree. So it fades to 1 where the fields do not tell more. Where they
    disagree by more than ``max_error``, it is refused.
    """
    flat = np.ones(shape, dtype=np.float32)
    stack = sort_fields(thumbnails)
    if len(stack) < params.min_fields:
        return flat, f"only {len(stack)} fields, at least {params.min_fields} are needed"
    if is_even(stack):
        return flat, ""
    surface = _Surface(stack.shape[1:], params.degree)
    counts = _above(stack, _offset(stack, params))
    fit = _align if params.statistic == "alignment" else _average
    coefficients = fit(counts, surface, params)[0]
    first, second = (fit(counts[half::2], surface, params)[0] for half in (0, 1))
    total, noise = (coefficients**2).sum(), ((first - second) ** 2).sum() / 4
    coefficients = coefficients * max(0.0, 1 - noise / max(total, 1e-12))

    found = np.exp(surface.at(shape, coefficients))
    error = float(np.sqrt(noise / counts.shape[1]))
    if reason := doubt_flatfield(found, max_range=params.max_range, error=error, max_error=params.max_error):
        return flat, reason
    return (found / found.mean()).astype(np.float32), ""


def estimate_offset(thumbnails, params):
    """Estimate what the camera reads in the dark [counts].

    Parameters
    ----------
    thumbnails : ndarray of float32, shape (K, G, G)
        As `shrink` made them [counts].
    params : Params

    Returns
    -------
    float
        Somewhat above half of the darkest block where the light is too even, or cells too few, to tell more;
        ``params.camera_offset`` if that is set.
    """
    return _offset(sort_fields(thumbnails), params)


def _above(stack, offset):
    """Log of the counts above the offset, shape (K, blocks); what lies at or below it is lifted to a floor, NaN stays."""
    counts = stack.reshape(len(stack), -1) - offset
    return np.log(np.maximum(counts, max(1e-3 * np.nanmedian(counts), 1e-9)))


class _Surface:
    """Polynomials in y and x, orthonormal on the blocks of a thumbnail, without the constant."""

    def __init__(self, grid, degree):
        self.degree = degree
        self.mixing, tables = [], []
        for size in grid:
            table = legendre.legvander((np.arange(size) + 0.5) / size * 2 - 1, degree)
            mixing = np.linalg.inv(np.linalg.qr(table)[1])
            self.mixing.append(mixing)
            tables.append(table @ mixing)
        self.pairs = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)][1:]
        self.basis = np.stack([np.outer(tables[0][:, i], tables[1][:, j]).ravel() for i, j in self.pairs])

    def project(self, values):
        """Coefficients of a map; einsum and not a matrix product, whose last bits depend on the number of threads."""
        return np.einsum("pn,n->p", self.basis, values)

    def on_blocks(self, coefficients):
        return np.einsum("pn,p->n", self.basis, coefficients)

    def at(self, shape, coefficients):
        """The surface on the pixels of a field."""
        square = np.zeros((self.degree + 1, self.degree + 1))
        for (i, j), value in zip(self.pairs, coefficients, strict=True):
            square[i, j] = value
        rows, columns = (
            legendre.legvander((np.arange(size) + 0.5) / size * 2 - 1, self.degree) @ mixing
            for size, mixing in zip(shape, self.mixing, strict=True)
        )
        return np.einsum("yi,ix->yx", rows, np.einsum("ij,xj->ix", square, columns))


def _align(values, surface, params=None):
    """Coefficients of the log flat-field, and the log content left without it and without the fields' levels."""
    coefficients = np.zeros(len(surface.pairs))
    levels = np.zeros((len(values), 1))
    known = ~np.isnan(values)
    seen = [np.maximum(known.sum(axis, keepdims=True), 1) for axis in (0, 1)]
    content = values
    for bandwidth in _BANDWIDTHS:
        for _ in range(_STEPS):
            score, information = _score(content, bandwidth)
            step = surface.project((score / seen[0]).sum(0)) / information
            coefficients = coefficients + step
            pull = _PATCHES * (score / seen[1]).sum(1, keepdims=True) - levels / _LEVEL_SPREAD**2
            levels = levels + pull / (_PATCHES * information + 1 / _LEVEL_SPREAD**2)
            levels -= np.median(levels)
            content = values - surface.on_blocks(coefficients) - levels
            if np.abs(step).max() < 2e-4 * np.sqrt(values.shape[1]):
                break
    return coefficients, content


def _average(values, surface, params):
    """Coefficients of the log of the fields' mean or median; as `_align`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block that no field shows
        each = np.exp(values - np.nanmedian(values, axis=1, keepdims=True))
        typical = np.log((np.nanmean if params.statistic == "mean" else np.nanmedian)(each, axis=0))
    seen = ~np.isnan(typical)
    basis = np.vstack([np.ones(seen.sum()), surface.basis[:, seen]])
    products = np.einsum("pn,qn->pq", basis, basis)
    coefficients = np.linalg.solve(products, np.einsum("pn,n->p", basis, typical[seen]))[1:]
    return coefficients, values - surface.on_blocks(coefficients)


def _score(content, bandwidth):
    """Derivative of the negative log density at each value, the density being that of all, smoothed; its information.

    0 where a value is not known.
    The information is the smoothed density's own: with that of the values, which are far sharper than a wide bandwidth,
    steps overshoot.
    """
    from scipy.ndimage import gaussian_filter1d  # not with the settings

    known = ~np.isnan(content)
    values = content[known]
    low, high = np.quantile(values, [0.001, 0.999]) + np.array([-3, 3]) * bandwidth
    count = int((high - low) / (bandwidth / 4)) + 1
    width = (high - low) / count
    density = np.histogram(values, count, (low, high))[0].astype(np.float64)
    density = gaussian_filter1d(density, bandwidth / width, mode="constant") + 1e-3 * width * values.size
    slope = -np.gradient(np.log(density), width)
    information = (density * slope**2).sum() / density.sum()
    score = np.zeros(content.shape)
    score[known] = np.interp(values, low + (np.arange(count) + 0.5) * width, slope)
    return score, max(information, 1e-9)


def _offset(stack, params):
    """Offset [counts]: posterior mean over a grid, given that cells should show the shading of everything."""
    if params.camera_offset is not None:
        return params.camera_offset
    darkest = np.nanquantile(stack, 0.0005)
    if len(stack) < params.min_fields or darkest <= 0:
        return 0.0
    surface = _Surface(stack.shape[1:], params.degree)
    coarse, shares = np.linspace(0, 0.9, 7), np.linspace(0, 0.9, 181)
    misfit = np.interp(shares, coarse, [_misfit(stack, share * darkest, surface) for share in coarse]) ** 2
    weights = misfit + ((shares - _OFFSET_SHARE) / _OFFSET_SPREAD) ** 2
    weights = np.exp(-0.5 * (weights - weights.min()))
    return float(darkest * (weights * shares).sum() / weights.sum())


def _misfit(stack, offset, surface):
    """Shading left in cells less that left in background, in standard errors; 0 where no cells stand out."""
    coefficients, content = _align(_above(stack, offset), surface)
    known = ~np.isnan(content)
    values = content[known]
    cells = content > _threshold(np.clip(values, *np.quantile(values, [0.001, 0.995])))
    others = known & ~cells
    if not cells.any() or not others.any() or np.median(content[cells]) - np.median(content[others]) < 0.25:
        return 0.0
    shading = surface.on_blocks(coefficients)
    (slope, variance), (other, its_variance) = (_slope(content, shading, part) for part in (cells, others))
    return float((slope - other) / np.sqrt(max(variance + its_variance, 1e-12)))


def _slope(content, shading, chosen):
    """Slope of the chosen blocks' content on the shading, and its variance, fields being what is drawn at random."""
    center = np.median(content[chosen])
    spread = 4 * np.median(np.abs(content[chosen] - center))
    content = np.where(chosen, np.clip(content - center, -spread, spread), 0)
    content -= chosen * (content.sum() / chosen.sum())
    shading = np.where(chosen, shading, 0)
    shading -= chosen * (shading.sum() / chosen.sum())
    up, across = (shading * content).sum(1), (shading**2).sum(1)
    scale = max(across.sum(), 1e-12)
    slope = up.sum() / scale
    return slope, ((up - slope * across) ** 2).sum() / scale**2


def _threshold(values):
    """Otsu's threshold."""
    count, edges = np.histogram(values, 256)
    centers = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(count)
    share = below / below[-1]
    mean = np.cumsum(count * centers) / below[-1]
    between = (mean[-1] * share - mean) ** 2 / np.maximum(share * (1 - share), 1e-12)
    return centers[between[:-1].argmax()]
