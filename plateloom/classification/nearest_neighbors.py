"""k nearest neighbors: learns nothing beforehand; classes of any shape, few features (best with latents)."""

from pydantic import BaseModel, ConfigDict, Field

GRID = {"n_neighbors": (50, 15, 5)}  # that `tune` searches; the smoothest first


class Params(BaseModel):
    """Settings of nearest neighbors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_neighbors: int = Field(15, ge=1, description="Neighbors that vote.")
    most_cells: int = Field(2000, ge=100, description="Cells that are kept to be neighbors; more are drawn from.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def build(params, *, weights=True):
    """Build the estimator: votes of the nearest cells."""
    from plateloom.classification.estimators import VotingNeighbors

    return VotingNeighbors(params.n_neighbors, most_cells=params.most_cells, balanced=weights, random_state=params.seed)
