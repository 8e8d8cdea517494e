"""A map by UMAP of the principal components of a sample."""

import warnings

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.latent.pca import first_two

SMALL = 4096  # rows from which on UMAP's neighbors are approximate


class Params(BaseModel):
    """Settings of a map by UMAP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_components: int = Field(20, ge=1, description="Principal components that UMAP starts from")
    clip: float = Field(10.0, gt=0, description="Scaled features are clipped here [robust standard deviations]")
    n_neighbors: int = Field(15, ge=2, description="UMAP needs more rows than these [rows].")
    min_dist: float = Field(0.1, ge=0, lt=1, description="Smallest distance of points [map units].")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def embed(components, params):
    """Lay the sample out.

    Parameters
    ----------
    components : ndarray of float32, shape (n, K)
        Principal components of the sample.
    params : Params

    Returns
    -------
    embedding : ndarray of float32, shape (n, 2), or None
        None: the sample is too small, the map is the first two components.
    reason : str
        Why it is another map than asked for; '' if it is not.

    Notes
    -----
    UMAP starts from the first two principal components: repeatable, and it keeps the large distances better than a
    random start (Kobak & Linderman 2021, doi:10.1038/s41587-020-00809-z). It is given the exact neighbors: looking for
    approximate ones, as it would from `SMALL` rows on, takes longer to compile than these to find.
    """
    # Where every row is everyone's neighbor there is no neighborhood to preserve.
    if len(components) <= params.n_neighbors:
        return None, (
            f"{len(components)} rows, UMAP needs more than its {params.n_neighbors} neighbors: the map shows the first two "
            "principal components"
        )
    start = first_two(components)
    largest = np.abs(start).max()
    start = 10 * start / largest if largest > 0 else start
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed")
        warnings.filterwarnings("ignore", message="n_jobs value .* overridden")
        warnings.filterwarnings("ignore", message="precomputed_knn.* is not an NNDescent object")
        import umap

        known = _find_neighbors(components, params.n_neighbors) if len(components) >= SMALL else (None, None, None)
        model = umap.UMAP(
            n_components=2,
            n_neighbors=params.n_neighbors,
            precomputed_knn=known,
            min_dist=params.min_dist,
            init=start,
            random_state=params.seed,
            n_jobs=1,
        )
        embedding = model.fit_transform(components)
    return np.ascontiguousarray(embedding, dtype=np.float32), ""


def _find_neighbors(components, count):
    """Numbers and distances of each row's nearest rows, itself among them; and no index, which only new rows need."""
    from sklearn.neighbors import NearestNeighbors

    distances, numbers = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(components).kneighbors(components)
    return numbers, distances.astype(np.float32), None
