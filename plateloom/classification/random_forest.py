"""Random forest: the robust choice for a few thousand labeled cells."""

from pydantic import BaseModel, ConfigDict, Field

GRID = {"min_cells_per_leaf": (30, 10, 3)}  # that `tune` searches; the smoothest first


class Params(BaseModel):
    """Settings of the random forest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_trees: int = Field(200, ge=1, description="Number of trees.")
    max_depth: int | None = Field(None, ge=1, description="Depth of a tree; none: unlimited.")
    min_cells_per_leaf: int = Field(3, ge=1, description="A leaf holds so many cells at least.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def build(params, *, weights=True):
    """Build the estimator: forest."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=params.n_trees,
        max_depth=params.max_depth,
        min_samples_leaf=params.min_cells_per_leaf,
        class_weight="balanced" if weights else None,
        random_state=params.seed,
    )
