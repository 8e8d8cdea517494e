"""Clusters by k-means: every cell belongs to the nearest of a few centers."""

import warnings

from pydantic import BaseModel, ConfigDict, Field

BY_CENTER = True
CELLS = 20  # per cluster, that a sample must have for so many clusters


class Params(BaseModel):
    """Settings of clusters by k-means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_clusters: int | None = Field(
        None, ge=1, description="Number of clusters; default: as many as are found again in other wells."
    )
    most: int = Field(10, ge=2, description="Clusters looked for at most where their number is not given.")
    starts: int = Field(5, ge=1, description="Random starts, of which the tightest clusters are taken.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def candidates(params, n):
    """From two clusters on, as many as the sample has cells for; the number that is given, if one is."""
    if params.n_clusters is not None:
        return [params]
    numbers = range(2, min(params.most, n // CELLS) + 1)
    return [params.model_copy(update={"n_clusters": k}) for k in numbers or (1,)]


def cluster(components, params):
    """Find as many clusters as asked for; fewer where there are not so many different cells."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    number = min(params.n_clusters, len(components))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of cells that are the same
        # Without a tolerance each cell ends with the center that is nearest in the end.
        model = KMeans(n_clusters=number, n_init=params.starts, random_state=params.seed, tol=0)
        return model.fit_predict(components)
