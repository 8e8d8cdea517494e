"""Flat-field as the part of low rank of a plate's fields: one light for all of them, times a level of each, and a rest.

After BaSiC (Peng et al. 2017, doi:10.1038/ncomms14836), and smaller. A field is its background under the light, and
things that are sparse: cells, dust. What is sparse is weighted down, again and again, until only what all fields share
is left; the light is a parabola and few cosine waves (those of a DCT, which alone would be level at the borders). Other
than there, the sum is one of logs, since light multiplies; and the dark level of the camera is one number. It needs some
background in every field.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.illumination import median
from plateloom.illumination.plausibility import doubt_flatfield
from plateloom.illumination.thumbnails import is_even, shrink_plane, sort_fields

_SPREADS = (0.5, 0.35, 0.25, 0.17, 0.12, 0.08)  # of the background, in log units: from coarse to fine
_STEPS = 6
_PATCHES = 100  # independent pieces in a field
_BACKGROUND = 0.25  # quantile of a field's blocks that its level begins with


class Params(BaseModel):
    """Parameters of the estimate."""

    model_config = ConfigDict(extra="forbid")

    thumbnail: int = Field(64, ge=8, le=256, description="Width and height of a field's thumbnail [blocks].")
    waves: int = Field(5, ge=1, le=16, description="Highest frequency of the log flat-field, in half waves per field.")
    sparsity: float = Field(
        0.03,
        gt=0,
        description="Typical size of the slowest wave of the log flat-field; smaller: a smoother flat-field, nearer to 1.",
    )
    min_fields: int = Field(16, ge=2, description="From fewer fields no flat-field is estimated: it is 1.")
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
    """Shrink one raw plane to block means; as `plateloom.illumination.median.shrink`."""
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
    The model is ``log(counts - offset) = level of the field + waves + rest``, the parabola being a wave here. Levels and waves are found in turns by
    least squares, a block's weight being ``1 / (1 + (rest / spread)²)²``, with a spread that narrows. A wave costs as
    much as it is large, and more the faster it is (the L1 norm of the DCT), so most of them are nearly 0.
    Offset and fading to 1 are as in `plateloom.illumination.median`.
    """
    flat = np.ones(shape, dtype=np.float32)
    stack = sort_fields(thumbnails)
    if len(stack) < params.min_fields:
        return flat, f"only {len(stack)} fields, at least {params.min_fields} are needed"
    if is_even(stack):
        return flat, ""
    counts = stack - median.estimate_offset(stack, median.Params(camera_offset=params.camera_offset))
    values = np.log(np.maximum(counts, max(1e-3 * np.nanmedian(counts), 1e-9))).reshape(len(stack), -1)
    waves = _Waves(params.waves)
    basis = waves.on(stack.shape[1:])
    costs = waves.frequencies**1.5 / params.sparsity
    sizes = _fit(values, basis, costs)
    first, second = (_fit(values[half::2], basis, costs) for half in (0, 1))
    total, noise = (np.var(np.einsum("p,pn->n", one, basis)) for one in (sizes, (first - second) / 2))
    sizes = sizes * max(0.0, 1 - noise / max(total, 1e-12))

    found = np.exp(waves.at(shape, sizes))
    error = float(np.sqrt(noise))
    if reason := doubt_flatfield(found, max_range=params.max_range, error=error, max_error=params.max_error):
        return flat, reason
    return (found / found.mean()).astype(np.float32), ""


class _Waves:
    """Cosines in y and x up to a frequency, and a parabola, without the constant; the mean square of each is 1."""

    def __init__(self, highest):
        numbers = range(highest + 1)
        self.highest = highest
        cosines = [(i, j) for i in numbers for j in numbers if 0 < i * i + j * j <= highest**2]
        line, square = highest + 1, highest + 2
        self.pairs = [*cosines, (0, line), (line, 0), (0, square), (square, 0), (line, line)]
        self.frequencies = np.array([np.hypot(i, j) for i, j in cosines] + 4 * [1] + [np.sqrt(2)])

    def _along(self, size):
        """Values along one axis, shape (size, functions)."""
        place, number = (np.arange(size)[:, None] + 0.5) / size, np.arange(self.highest + 1)
        cosines = np.cos(np.pi * number * place) * np.where(number == 0, 1, np.sqrt(2))
        place = 2 * place - 1
        return np.hstack([cosines, np.sqrt(3) * place, np.sqrt(5) * (1.5 * place**2 - 0.5)])

    def on(self, grid):
        """Values on the blocks of a thumbnail, shape (P, blocks)."""
        rows, columns = map(self._along, grid)
        return np.stack([np.outer(rows[:, i], columns[:, j]).ravel() for i, j in self.pairs])

    def at(self, shape, sizes):
        """Their sum on the pixels of a field."""
        square = np.zeros((self.highest + 3, self.highest + 3))
        for (i, j), size in zip(self.pairs, sizes, strict=True):
            square[i, j] = size
        rows, columns = map(self._along, shape)
        return np.einsum("yi,ix->yx", rows, np.einsum("ij,xj->ix", square, columns))


def _fit(values, basis, costs):
    """Sizes of the waves in the logs of some fields, shape (K, blocks), NaN where not known."""
    known = ~np.isnan(values)
    levels = np.nanquantile(values, _BACKGROUND, axis=1)
    values = np.where(known, values, 0)
    sizes = np.zeros(len(basis))
    for spread in _SPREADS:
        for _ in range(_STEPS):
            light = np.einsum("p,pn->n", sizes, basis)
            rest, weights = _weigh(values - light - levels[:, None], known, spread)
            levels = levels + (weights * rest).sum(1) / np.maximum(weights.sum(1), 1e-9)
            rest, weights = _weigh(values - light - levels[:, None], known, spread)
            # Weights sum up to the number of independent pieces, whatever the thumbnail's size.
            scale = _PATCHES / values.shape[1] / spread**2
            of_block, pull = weights.sum(0) * scale, (weights * rest).sum(0) * scale
            products = np.einsum("pn,qn->pq", basis * of_block, basis)
            means = np.einsum("pn,n->p", basis, of_block)
            products -= np.outer(means, means) / of_block.sum()
            pull = np.einsum("pn,n->p", basis, pull) - means * pull.sum() / of_block.sum()
            cost = costs / (np.abs(sizes) + 1e-3)
            sizes = sizes + np.linalg.solve(products + np.diag(cost), pull - cost * sizes)
    return sizes


def _weigh(rest, known, spread):
    """What the model leaves of each block, and its weight; both 0 where a block is not known."""
    return np.where(known, rest, 0), known / (1 + (rest / spread) ** 2) ** 2
