"""Random forest for numbers: any monotone or bent relation, within the range of the labels."""

from pydantic import BaseModel, ConfigDict, Field


class Params(BaseModel):
    """Settings of the forest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_trees: int = Field(200, ge=1, description="Number of trees.")
    min_cells_per_leaf: int = Field(10, ge=1, description="A leaf holds so many cells at least.")
    share_of_features: float = Field(0.3, gt=0, le=1, description="Share of the features that a split is chosen from.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def build(params):
    """Build the estimator: forest."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(
        n_estimators=params.n_trees,
        min_samples_leaf=params.min_cells_per_leaf,
        max_features=params.share_of_features,
        random_state=params.seed,
    )
