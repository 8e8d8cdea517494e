"""Clusters by Leiden: communities of the graph that joins each cell with its nearest ones.

It needs leidenalg and igraph, which are under the GPL and therefore come neither with Plateloom nor by themselves.
"""

import importlib.util

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.errors import ModelMismatchError

BY_CENTER = False
PACKAGE = "leidenalg"
INSTALL = "pip install leidenalg"


class Params(BaseModel):
    """Settings of clusters by Leiden."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_neighbors: int = Field(15, ge=2, description="Nearest cells that each cell is joined with.")
    resolution: float = Field(1.0, gt=0, description="A larger one gives more and smaller clusters (dimensionless).")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def notices(params):
    """What a person must know before using it."""
    return [
        "latent.maps.clusters.method leiden: runs leidenalg and igraph, which are under the GNU General Public License (version 3, and 2 "
        "or later); who hands on a program together with them is bound by it. kmeans and hdbscan are free of it"
    ]


def candidates(params, n):
    """The parameters themselves: the number of clusters follows from the resolution."""
    return [params]


def cluster(components, params):
    """Find communities of the graph that joins each cell with its nearest ones.

    Raises
    ------
    ModelMismatchError
        If leidenalg is not installed; says what to type.

    Notes
    -----
    Leiden (Traag et al. 2019, doi:10.1038/s41598-019-41695-z) on the graph of PhenoGraph (Levine et al. 2015,
    doi:10.1016/j.cell.2015.05.047): cells are joined with their nearest ones, the more strongly the more of these they share.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModelMismatchError(
            f"latent.maps.clusters.method leiden: the package {PACKAGE!r} is not installed: {INSTALL} "
            "(it and igraph are under the GNU General Public License)"
        )
    if len(components) <= params.n_neighbors:
        return np.zeros(len(components), int)
    import igraph
    import leidenalg

    edges, weights = shared_neighbors(components, params.n_neighbors)
    graph = igraph.Graph(n=len(components), edges=edges)
    found = leidenalg.find_partition(
        graph,
        leidenalg.RBConfigurationVertexPartition,
        weights=weights,
        n_iterations=-1,
        seed=params.seed,
        resolution_parameter=params.resolution,
    )
    return np.array(found.membership)


def shared_neighbors(components, k):
    """Join each row with its nearest ones, weighted by how many nearest ones the two share.

    Parameters
    ----------
    components : ndarray of float, shape (n, K)
    k : int

    Returns
    -------
    edges : ndarray of int, shape (E, 2)
        Each once, the smaller number first.
    weights : ndarray of float64, shape (E,)
        Jaccard index of the two rows' neighborhoods: the k nearest rows and the row itself.

    Examples
    --------
    >>> edges, weights = shared_neighbors(np.array([[0.0], [1.0], [2.1]]), 1)
    >>> edges.tolist(), weights.round(2).tolist()
    ([[0, 1], [1, 2]], [1.0, 0.33])
    """
    from scipy import sparse

    from plateloom.latent.neighbors import find_neighbors

    n = len(components)
    near, _ = find_neighbors(components, k)
    rows = np.repeat(np.arange(n), k)
    joined = sparse.csr_array((np.ones(n * k), (rows, near.ravel())), shape=(n, n)) + sparse.eye_array(n, format="csr")
    both = sparse.triu((joined @ joined.T).multiply(joined + joined.T > 0), 1).tocoo()
    return np.column_stack([both.row, both.col]), both.data / (2 * (k + 1) - both.data)
