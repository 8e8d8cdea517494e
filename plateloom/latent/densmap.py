"""A map by densMAP: UMAP that also keeps how dense the neighborhoods are; by the package umap-learn."""

import warnings

import numpy as np
from pydantic import Field

from plateloom.latent import umap as plain
from plateloom.latent.neighbors import find_neighbors


class Params(plain.Params):
    """Settings of a map by densMAP."""

    density_weight: float = Field(
        2.0, ge=0, description="Weight of the densities beside the neighbors; 0 is UMAP (dimensionless)."
    )


def embed(components, params):
    """Lay the sample out by densMAP.

    Notes
    -----
    densMAP (Narayan et al. 2021, doi:10.1038/s41587-020-00801-7): a group that varies little is drawn small, one that varies
    much is drawn large. Neighbors and start are those of our UMAP.
    """
    reason = plain.reason_of_few(len(components), params)
    if reason:
        return None, reason
    numbers, distances = find_neighbors(components, params.n_neighbors - 1)
    own = np.arange(len(components), dtype=np.int32)[:, None]  # umap-learn counts a row among its neighbors
    known = np.hstack([own, numbers]), np.hstack([np.zeros_like(own, np.float32), distances]), None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed")
        warnings.filterwarnings("ignore", message="n_jobs value .* overridden")
        warnings.filterwarnings("ignore", message="precomputed_knn.* is not an NNDescent object")
        import umap

        model = umap.UMAP(
            densmap=True,
            dens_lambda=params.density_weight,
            n_neighbors=params.n_neighbors,
            precomputed_knn=known,
            min_dist=params.min_dist,
            init=plain.start_of(components, params.seed),
            random_state=params.seed,
            n_jobs=1,
        )
        embedding = model.fit_transform(components)
    return np.ascontiguousarray(embedding, dtype=np.float32), ""
