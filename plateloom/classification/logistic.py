"""Logistic regression: few labeled cells, classes that a plane separates."""

from pydantic import BaseModel, ConfigDict, Field

GRID = {"inverse_penalty": (0.001, 0.01, 0.1, 1.0)}  # that `tune` searches; the smoothest first


class Params(BaseModel):
    """Settings of logistic regression."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inverse_penalty: float = Field(0.1, gt=0, description="C of scikit-learn: smaller is smoother")
    max_iterations: int = Field(2000, ge=1, description="Steps of the solver at most.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def build(params, *, weights=True):
    """Build the estimator: L2-penalized regression."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        C=params.inverse_penalty,
        max_iter=params.max_iterations,
        class_weight="balanced" if weights else None,
        random_state=params.seed,
    )
