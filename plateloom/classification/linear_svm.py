"""Linear support vector machine: like logistic regression, and deaf to cells that lie far on the right side."""

from pydantic import BaseModel, ConfigDict, Field

GRID = {"inverse_penalty": (0.0001, 0.001, 0.01, 0.1)}  # that `tune` searches; the smoothest first


class Params(BaseModel):
    """Settings of the linear support vector machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inverse_penalty: float = Field(0.001, gt=0, description="C of scikit-learn: smaller is smoother.")
    max_iterations: int = Field(2000, ge=1, description="Steps of the solver at most.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


def build(params, *, weights=True):
    """Build the estimator: a plane that keeps classes apart."""
    from plateloom.classification.estimators import MarginSVM

    return MarginSVM(
        C=params.inverse_penalty,
        dual=False,
        max_iter=params.max_iterations,
        class_weight="balanced" if weights else None,
        random_state=params.seed,
    )
