"""Gradient boosting on histograms: tens of thousands of labeled cells and more."""

from pydantic import BaseModel, ConfigDict, Field

GRID = {"n_rounds": (30, 100, 300)}  # that `tune` searches; the smoothest first


class Params(BaseModel):
    """Settings of gradient boosting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_rounds: int = Field(100, ge=1, description="Rounds of boosting.")
    learning_rate: float = Field(0.1, gt=0, description="Share of each round's tree that counts.")
    max_leaves: int = Field(15, ge=2, description="Leaves of a tree at most.")
    min_cells_per_leaf: int = Field(20, ge=1, description="A leaf holds so many cells at least.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def build(params, *, weights=True):
    """Build the estimator: boosted trees.

    Notes
    -----
    Early stopping is off: scikit-learn would hold out random cells for it, of the very wells that it learns from.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=params.n_rounds,
        learning_rate=params.learning_rate,
        max_leaf_nodes=params.max_leaves,
        min_samples_leaf=params.min_cells_per_leaf,
        early_stopping=False,
        class_weight="balanced" if weights else None,
        random_state=params.seed,
    )
