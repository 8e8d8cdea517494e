"""A map by UMAP of the principal components of a sample."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.latent.layout import draw_together, lay_out
from plateloom.latent.neighbors import find_neighbors, fuzzy_graph
from plateloom.latent.pca import first_two

SIDE = 10.0  # of the square that the layout starts in [map units]
JITTER = 1e-4  # sets rows apart that start in one place [map units]


class Params(BaseModel):
    """Settings of a map by UMAP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_components: int = Field(20, ge=1, description="Principal components that UMAP starts from")
    clip: float = Field(10.0, gt=0, description="Scaled features are clipped here [robust standard deviations]")
    n_neighbors: int = Field(15, ge=2, description="UMAP needs more rows than these [rows].")
    min_dist: float = Field(0.1, ge=0, lt=1, description="Smallest distance of points [map units].")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def embed(components, params):
    """Lay the sample out by UMAP.

    Notes
    -----
    UMAP (McInnes et al. 2018, arXiv:1802.03426) starts here from the first two principal components: repeatable, and it keeps the
    large distances better than a random start (Kobak & Linderman 2021, doi:10.1038/s41587-020-00809-z). The layout is our own,
    of two coordinates only, and needs no package; see `lay_out` and `draw_together`.
    """
    reason = reason_of_few(len(components), params)
    if reason:
        return None, reason
    graph = fuzzy_graph(*find_neighbors(components, params.n_neighbors - 1))
    places = lay_out(graph, start_of(components, params.seed), min_dist=params.min_dist, seed=params.seed)
    return draw_together(graph, places), ""


def reason_of_few(n, params):
    """Say why so few rows have no map by their neighbors.

    Parameters
    ----------
    n : int
    params : Params

    Returns
    -------
    str
        '' if they have one. Where every row is everyone's neighbor there is no neighborhood to preserve.
    """
    if n > params.n_neighbors:
        return ""
    return f"{n} rows, UMAP needs more than its {params.n_neighbors} neighbors: the map shows the first two principal components"


def start_of(components, seed):
    """Scale the first two principal components to the square that a layout starts in.

    Parameters
    ----------
    components : array of float, shape (n, K)
    seed : int
        Of the jitter that sets equal rows apart.

    Returns
    -------
    ndarray of float32, shape (n, 2)
    """
    start = first_two(components).astype(float)
    start -= start.min(axis=0)
    largest = start.max(axis=0)
    start *= SIDE / np.where(largest > 0, largest, 1.0)
    return (start + np.random.default_rng(seed).normal(0, JITTER, start.shape)).astype(np.float32)
